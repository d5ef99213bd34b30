"""The engine: all model calls of a process, on one event loop."""
