"""``python -m llmdo`` is ``llmdo``."""

from llmdo.runners.cli.main import main

if __name__ == "__main__":
    main()
