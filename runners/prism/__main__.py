"""``python -m llmdo.runners.prism`` finds or builds the binary, and prints its path."""

from __future__ import annotations

import sys

from llmdo.runners.prism.binary import PrismError, find_prism


def main() -> int:
    """Prints the path of the binary, and builds a missing one. Returns 1, with the reason on stderr, if it cannot."""
    try:
        print(find_prism(None))  # noqa: T201  this is the command's output
    except PrismError as error:
        print(error, file=sys.stderr)  # noqa: T201  the command's complaint
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
