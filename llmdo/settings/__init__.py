"""What a process finds in its surroundings: the environment, secrets, private files, the network."""
