"""Files that a launcher runs by their path; the folder becomes ``sys.path[0]``, so nothing else lies in it."""
