"""Workers AI."""
