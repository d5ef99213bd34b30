"""What the refusals of services mean."""
