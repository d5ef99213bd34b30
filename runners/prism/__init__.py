"""Prism, Beam's runner for continuous work on one machine."""
