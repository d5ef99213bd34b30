"""Places that lines may name pictures, sounds and files in, and how these are read."""
