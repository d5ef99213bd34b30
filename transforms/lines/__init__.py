"""The lines of a file, by byte ranges."""
