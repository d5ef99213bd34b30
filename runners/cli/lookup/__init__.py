"""Commands that show what there is, and serve it."""
