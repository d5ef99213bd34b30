"""The commands' exit codes; apart from the summary of runs, which commands that begin at once do not import."""

from __future__ import annotations

EXIT_ANSWERED, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_ERRORS, EXIT_HANDED_OVER = 0, 1, 2, 3, 4
EXIT_SAMPLED = 5  # a sample was answered, and nothing else was to be
