"""Where a graph runs, and the command line."""
