"""Models behind one form of request, answer and error. No Beam here; ``llmdo`` itself holds the public names."""
