"""Pictures, sounds and files that a line names by reference: found in requests, fetched, and put in."""
