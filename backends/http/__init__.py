"""HTTP as all providers use it."""
