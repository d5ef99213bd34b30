"""The exit code and the messages of a command that failed."""

from __future__ import annotations

from llmdo.backends.errors import ModelError
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exit_codes import EXIT_FAILED, EXIT_USAGE
from llmdo.runners.showing.limits import until_text
from llmdo.settings.environment import MissingSettings
from llmdo.settings.tools import ToolError
from llmdo.storage.errors import BucketNotFound, StorageError


def exit_code_and_problems(error: Exception) -> tuple[int | None, list[str]]:
    """A sentence for each problem; None for an error that is not expected of any command."""
    match error:
        case UsageError() | MissingSettings():
            return EXIT_USAGE, list(error.problems)
        case BucketNotFound():
            return EXIT_USAGE, [str(error)]
        case ModelError():
            return EXIT_FAILED, [str(error), *([] if error.until is None else [until_text(error.until)])]
        case StorageError() | ToolError():
            return EXIT_FAILED, [str(error)]
    return None, []
