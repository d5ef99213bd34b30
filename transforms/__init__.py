"""One PTransform a step, named by its verb; the thinking is in plain functions."""
