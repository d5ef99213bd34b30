"""A sample of the lines, answered before the rest: what all of them will cost."""
