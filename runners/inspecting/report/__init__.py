"""``llmdo report``: an output as one HTML file."""
