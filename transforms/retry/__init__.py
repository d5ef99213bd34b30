"""Error rows, tried again."""
