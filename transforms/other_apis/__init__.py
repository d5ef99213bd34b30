"""Lines in the forms of other APIs, as the lines of OpenAI's batches that ask the same."""
