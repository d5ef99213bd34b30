"""Python workers of clusters."""
