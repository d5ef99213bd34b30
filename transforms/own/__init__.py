"""Steps with a function of the user's."""
