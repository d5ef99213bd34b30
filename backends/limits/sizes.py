"""How long requests are, in characters and tokens, and the limits that they set for their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmdo.backends.errors import InvalidRequest, short
from llmdo.backends.requests import ChatRequest, EmbedRequest, MediaReference, RawRequest, Request

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")  # two names of one thing
# What a model's own input may call it besides: OpenAI's Responses API, and Workers AI's summaries.
_OWN_LIMITS = (*TOKEN_LIMITS, "max_output_tokens", "max_length")
# Of a chat that sets no limit; the Workers AI backend sends it, since the API's default of 256 cuts answers off without
# a warning. Three pages, which end within the 120 to 240 s that the service allows a call.
DEFAULT_MAX_TOKENS = 2048

CHARACTERS_A_TOKEN = 4  # of English; what a call really used corrects it
# Routes whose answers are not text.
_WITHOUT_TEXT = frozenset({"embeddings", "moderations"})
# What templates of chat models put around a conversation, and around each message. Tokens.
CONVERSATION, MESSAGE = 40, 8
PICTURE = 2_000  # tokens of an image, at the most that vision models make of one
# The content of these fields is pictures and sounds, not text.
_MEDIA = frozenset({"image", "image_b64", "mask", "mask_b64", "audio", "video"})
# What a byte of something that a line names is worth, in bytes of text: a document at most as much as text, a sound of
# 1 kB a second, the least that is understood, some 10 tokens a second. Images are counted, not measured.
_AS_TEXT = {"file": 1.0, "audio": 10 * CHARACTERS_A_TOKEN / 1000, "video": 1.0}
# Parameters that the model reads.
_READ_TOO = ("tools", "functions", "response_format")


def memory_size(request: Request) -> int:
    """Characters of all text in a request, pictures too: about the bytes that it holds in memory."""
    held: list[Any] = [_content(request)]
    if isinstance(request, ChatRequest):
        held += [*(message.extra for message in request.messages), request.parameters]
    return sum(map(len, _texts(held)))


def likely_tokens(request: Request) -> float:
    """Tokens of a request's input, about; pictures are not counted."""
    return sum(len(text) for text in _texts(_content(request)) if not _is_picture(text)) / CHARACTERS_A_TOKEN


def longest_input(request: Request) -> tuple[int, int]:
    """Bytes of all that the model reads as text, and the most tokens that stand around it."""
    if isinstance(request, EmbedRequest):
        # Two marks and, where the model wants one, an instruction go with each text.
        return sum(map(_bytes, request.texts)), MESSAGE * len(request.texts)
    if isinstance(request, RawRequest):
        return _read_bytes(request.input), CONVERSATION + PICTURE * _pictures_in(request.input)
    text, around = 0, CONVERSATION + MESSAGE * len(request.messages)
    for message in request.messages:
        text += _read_bytes(message.content) + _read_bytes(message.extra)
        around += PICTURE * _pictures(message.content)
    return text + sum(_read_bytes(request.parameters.get(name)) for name in _READ_TOO), around


def _content(request: Request) -> Any:
    """What a request says, without what stands around it."""
    if isinstance(request, ChatRequest):
        return [message.content for message in request.messages]
    return request.texts if isinstance(request, EmbedRequest) else request.input


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, names of fields left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _read_bytes(value: Any) -> int:
    """Bytes of all text in a JSON value, names of fields too; pictures and sounds are none."""
    if isinstance(value, str):
        if isinstance(value, MediaReference):
            return int(value.size * _AS_TEXT.get(value.medium, 0.0))
        return 0 if _is_picture(value) else _bytes(value)
    if isinstance(value, Mapping):
        if value.get("type") == "base64":  # an image or a document, as Anthropic has it
            return 0
        return sum(_bytes(str(name)) + _read_bytes(part) for name, part in value.items() if name not in _MEDIA)
    if isinstance(value, list | tuple):
        return sum(map(_read_bytes, value))
    return 0 if value is None else len(str(value))


def _pictures(content: Any) -> int:
    if isinstance(content, str) or content is None:
        return 0
    return sum(isinstance(part, Mapping) and part.get("type") == "image_url" for part in content)


def _pictures_in(value: Any) -> int:
    """Parts with an image in a body of /v1/responses or /v1/messages, however deep they stand."""
    if isinstance(value, Mapping):
        return (value.get("type") in ("input_image", "image")) + sum(map(_pictures_in, value.values()))
    if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float | str):
        return sum(map(_pictures_in, value))
    return 0


def _is_picture(text: str) -> bool:
    return text.startswith("data:")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def token_limit(parameters: Mapping[str, Any]) -> int | None:
    """The limit of tokens that a chat sets for its answer, by its old name or its new one; None without one.

    Of two that differ, the lower. -1 sets none, as servers have it. What is not a whole number of at least 1 sets none
    either: no call is made with it, see ``checked_token_limit``.
    """
    return min((limit for name in TOKEN_LIMITS if (limit := count_of(parameters.get(name)))), default=None)


def checked_token_limit(parameters: Mapping[str, Any]) -> int | None:
    """The same for a call. Raises InvalidRequest where a limit is neither a whole number of at least 1 nor -1."""
    for name in TOKEN_LIMITS:
        limit = parameters.get(name)
        if limit is not None and not is_unlimited(limit) and count_of(limit) is None:
            raise InvalidRequest(f"{name} is {short(limit)}: write a whole number of at least 1, or omit it")
    return token_limit(parameters)


def answer_limit(request: Request) -> int | None:
    """The most tokens that the answer of any request may have by the limits in it; None where it sets none.

    A model's own input is passed on as it is, and the model may read any of its limits: the highest counts.
    """
    if isinstance(request, ChatRequest):
        each = token_limit(request.parameters)
        return None if each is None else each * answers_wanted(request)
    if isinstance(request, RawRequest) and request.path not in _WITHOUT_TEXT:
        limits = [limit for name in _OWN_LIMITS if (limit := count_of(request.input.get(name)))]
        return max(limits) * answers_wanted(request) if limits else None
    return 0  # vectors and verdicts are not tokens


def answers_wanted(request: Request) -> int:
    """How many answers one call asks for, each as long as its limit: by ``n``, and prompts of /v1/completions."""
    if isinstance(request, ChatRequest):
        return count_of(request.parameters.get("n")) or 1
    if not isinstance(request, RawRequest) or request.path != "completions":
        return 1
    prompts = request.input.get("prompt")
    # An array of numbers is the tokens of one prompt.
    several = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    return several * max((n for name in ("n", "best_of") if (n := count_of(request.input.get(name)))), default=1)


def bounded(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for a limit of -1, where a call without a limit gets DEFAULT_MAX_TOKENS."""
    asked = next((name for name in TOKEN_LIMITS if is_unlimited(parameters.get(name))), None)
    if asked is None or token_limit(parameters) is not None:
        return ()
    return (f"{asked} -1 was left out: the answer has at most {DEFAULT_MAX_TOKENS} tokens unless {asked} says more",)


def is_unlimited(value: object) -> bool:
    """Whether a limit is -1, by which llama.cpp, LM Studio and their clients say that there is none."""
    return isinstance(value, int | float) and value == -1


def count_of(value: object) -> int | None:
    """A whole number of at least 1, also where somebody's tool has made it a float such as 100.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None
