"""Commands about what a run has written, or is writing."""
