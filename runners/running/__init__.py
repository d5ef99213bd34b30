"""What the commands that make runs do, from the first check to the summary."""
