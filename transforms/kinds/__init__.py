"""What kind of file it is, by its name and by what is in it."""
