"""Models behind one form of request, answer and error. No Beam here; usable alone: ``from backends import connect``."""

from backends.protocol import Backend, connect, split_model

__all__ = ["Backend", "connect", "split_model"]
