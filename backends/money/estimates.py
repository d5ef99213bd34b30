"""How many tokens a call may use at most, before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.backends.limits.rates import CHARACTERS_A_TOKEN
from llmdo.backends.parameters import DEFAULT_MAX_TOKENS, answer_limit, answers_wanted
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest, Request
from llmdo.backends.responses import Response
from llmdo.backends.usage import Usage

# What templates of chat models put around a conversation, and around each message. Tokens.
CONVERSATION, MESSAGE = 40, 8
PICTURE = 2_000  # tokens of an image, at the most that vision models make of one
LONGEST_RESULT = 256  # of a model's own input without a limit: Workers AI's default
# The content of these fields is pictures and sounds, not text.
_MEDIA = frozenset({"image", "image_b64", "mask", "mask_b64", "audio", "video"})
# Parameters that the model reads.
_READ_TOO = ("tools", "functions", "response_format")
# Of a short request most tokens are the template's, which says nothing of its text. Tokens.
_LONG_ENOUGH = 100


class Estimates:
    """Upper bounds, raised for each model by what was used: a byte is a quarter of a token, and one token at most."""

    __slots__ = ("_input", "_output")

    def __init__(self) -> None:
        self._input: dict[str, float] = {}
        self._output: dict[str, int] = {}

    def most(self, request: Request) -> Usage:
        """Tokens of input and output that a call may use."""
        text, around = _measure(request)
        bytes_a_token = self._input.get(request.model, CHARACTERS_A_TOKEN)
        given = around - int(-text // bytes_a_token)
        output = answer_limit(request)
        if output is None:
            by_default = LONGEST_RESULT if isinstance(request, RawRequest) and not request.path else DEFAULT_MAX_TOKENS
            output = max(by_default * answers_wanted(request), self._output.get(request.model, 0))
        if _asks_twice(request):  # the second time with the first answer
            return Usage(2 * (given + output), 2 * output)
        return Usage(given, output)

    def learn(self, request: Request, response: Response) -> None:
        """Takes note of what a call used."""
        used, model = response.usage, request.model
        if _asks_twice(request):
            return
        self._output[model] = max(used.output_tokens, self._output.get(model, 0))
        text, around = _measure(request)
        if used.input_tokens > around + _LONG_ENOUGH:
            found = text / (used.input_tokens - around)
            self._input[model] = max(1.0, min(found, self._input.get(model, CHARACTERS_A_TOKEN)))


def _asks_twice(request: Request) -> bool:
    """Whether a backend may ask a second time by itself: in JSON mode, after an answer that does not keep to it."""
    return isinstance(request, ChatRequest) and bool(request.parameters.get("response_format"))


def _measure(request: Request) -> tuple[int, int]:
    """Bytes of text, and tokens around it."""
    if isinstance(request, EmbedRequest):
        # Two marks and, where the model wants one, an instruction go with each text.
        text = sum(_bytes(one) for one in request.texts)
        return text, MESSAGE * len(request.texts)
    if isinstance(request, ChatRequest):
        text, around = 0, CONVERSATION + MESSAGE * len(request.messages)
        for message in request.messages:
            text += _text(message.content) + _text(message.extra)
            around += PICTURE * _pictures(message.content)
        text += sum(_text(request.parameters[name]) for name in _READ_TOO if name in request.parameters)
        return text, around
    return _text(request.input), CONVERSATION


def _text(value: Any) -> int:
    """Bytes of all text in a JSON value, names of fields too; pictures and sounds are none."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else _bytes(value)
    if isinstance(value, Mapping):
        return sum(_bytes(str(name)) + _text(part) for name, part in value.items() if name not in _MEDIA)
    if isinstance(value, list | tuple):
        return sum(map(_text, value))
    return 0 if value is None else len(str(value))


def _pictures(content: Any) -> int:
    if isinstance(content, str) or content is None:
        return 0
    return sum(isinstance(part, Mapping) and part.get("type") == "image_url" for part in content)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
