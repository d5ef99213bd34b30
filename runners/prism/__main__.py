"""``python -m llmdo.runners.prism`` finds or builds the binary, and prints its path."""

from __future__ import annotations

import sys
from functools import partial

from llmdo.runners.prism.binary import find_prism
from llmdo.settings.tools import print_path

if __name__ == "__main__":
    sys.exit(print_path(partial(find_prism, None)))
