"""Answers files of prompts in object storage: nothing lost, nothing paid twice."""
