"""One run on disk: its folder, checkpoints, pictures, and going on with it."""
