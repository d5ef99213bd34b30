"""Flink, and Beam's job server for it."""
