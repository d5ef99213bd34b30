"""The log of chats."""
