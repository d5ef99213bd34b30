"""OpenAI's API: chat, embeddings, responses, completions; files and batches."""
