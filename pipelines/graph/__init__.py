"""The steps of a run over files, for the main graph and for graphs of a user's own."""
