"""One graph a file, and what a user may set."""
