"""``python -m llmdo`` is ``llmdo``."""

from llmdo.runners.cli.main import main

main()
