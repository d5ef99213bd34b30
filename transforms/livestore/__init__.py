"""Chats whose messages and answers are in LiveStore's event logs."""
