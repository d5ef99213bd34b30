"""``python -m llmdo.runners.prism`` finds or builds the binary, and prints its path."""

from __future__ import annotations

import sys

from llmdo.runners.prism.binary import PrismError, find_prism


def main() -> int:
    """Prints where the binary is; one that is nowhere is built. Gives 1 where it cannot be had, and says why."""
    try:
        print(find_prism(None))  # noqa: T201  this is the command's output
    except PrismError as error:
        print(error, file=sys.stderr)  # noqa: T201  the command's complaint
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
