"""OpenAI's API, and the services that speak it."""
