"""``python -m runners`` is ``llmdo``."""

from runners.cli import main

main()
