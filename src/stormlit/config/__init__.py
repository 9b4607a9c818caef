"""From words and files to one checked configuration."""
