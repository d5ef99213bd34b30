"""``llmdo export``: an output as a table, joined to what was asked."""
