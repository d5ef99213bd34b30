"""OpenAI's Responses API where a service has only chats: bodies as conversations, and answers as responses."""
