"""Workers AI's results, in all their shapes, as our responses. Pure functions; the bodies are parsed JSON.

Text generation answers in one of three shapes, by model: native ``{"response": …}``, OpenAI's chat completion
``{"choices": […]}`` and OpenAI's Responses ``{"output": […]}``; with or without the envelope ``{"result": …}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic_core

from backends.errors import BadReply, ContentFiltered
from backends.ir import ChatResponse, FinishReason, Usage
from backends.openai_shapes import FINISH_REASONS, as_text, is_same_model, mapping, read_usage, tool_calls
from backends.workers_ai_errors import PROVIDER


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call brought: the result without its envelope, and what its headers say, a gateway's in ``details``."""

    result: Any
    request_id: str | None = None
    neurons: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def unwrap(body: Any) -> Any:
    """The result inside Cloudflare's envelope, or the body itself where there is no envelope."""
    return body["result"] if isinstance(body, dict) and "result" in body and "success" in body else body


def read_chat(reply: Reply, model: str, max_tokens: int) -> ChatResponse:
    """Reads any shape of text generation. ``max_tokens``: what was sent, to tell a cut answer from a whole one.

    Raises ContentFiltered, and BadReply for anything that is none of the shapes.
    """
    result = reply.result
    response = _shape(result) if isinstance(result, dict) else None
    if response is None:
        raise BadReply(
            f"{model} sent a reply that is no answer of a chat model ({_excerpt(result)}): "
            "name a text generation model, or send this model's own input",
            request_id=reply.request_id,
            provider=PROVIDER,
        )
    usage = read_usage(result, reply.neurons)
    if response.finish_reason == "content_filter":
        raise ContentFiltered(
            f"{model}: the filter withheld the answer (finish reason content_filter): change the prompt",
            request_id=reply.request_id,
            provider=PROVIDER,
            usage=usage,
        )
    finish = response.finish_reason
    if finish is None and usage.output_tokens >= max_tokens:
        finish = "length"  # the native shape has no finish reason
    answered, substituted = model_of(result, model)
    logprobs = mapping((result.get("choices") or [None])[0]).get("logprobs")
    return replace(
        response,
        finish_reason=finish,
        usage=usage,
        model=answered,
        request_id=reply.request_id,
        warnings=(*_warnings(response, finish, max_tokens), *substituted),
        details={**reply.details, **({"logprobs": logprobs} if logprobs else {})},
    )


def model_of(result: Any, asked: str) -> tuple[str, tuple[str, ...]]:
    """The model that answered, and a warning where it is not the one asked for: a retired name can lead to another
    one.
    """
    named = mapping(result).get("model")
    if not isinstance(named, str) or not named:
        return asked, ()
    if is_same_model(asked, named):
        return asked, ()
    return named, (f"model substituted: {named} answered instead of {asked}",)


def read_vectors(reply: Reply, model: str, count: int) -> tuple[tuple[float, ...], ...]:
    """Reads ``{"data": [[…], …]}``, or OpenAI's ``{"data": [{"embedding": […]}, …]}``; one vector for each of ``count``
    texts. Raises BadReply.
    """
    result = reply.result
    rows = mapping(result).get("data") or mapping(result).get("response")
    vectors = []
    for row in rows if isinstance(rows, list) else []:
        numbers = row.get("embedding") if isinstance(row, dict) else row
        if isinstance(numbers, list) and numbers and all(isinstance(x, int | float) for x in numbers):
            vectors.append(tuple(map(float, numbers)))
    if len(vectors) != count:
        raise BadReply(
            f"{model} sent {len(vectors)} vectors for {count} texts ({_excerpt(result)}): name an embedding model",
            request_id=reply.request_id,
            provider=PROVIDER,
        )
    return tuple(vectors)


def _shape(result: Mapping[str, Any]) -> ChatResponse | None:
    if isinstance(result.get("choices"), list) and result["choices"]:
        return _chat_completion(mapping(result["choices"][0]), result)
    if isinstance(result.get("output"), list):
        return _responses(result)
    if isinstance(result.get("description"), str):  # image to text
        return _response(result["description"], None, ())
    return _native(result) if "response" in result else None


def _native(result: Mapping[str, Any]) -> ChatResponse:
    calls = tool_calls(result.get("tool_calls"))
    finish = FINISH_REASONS.get(str(result.get("finish_reason")))
    return _response(as_text(result["response"]), finish or ("tool_calls" if calls else None), calls)


def _chat_completion(choice: Mapping[str, Any], result: Mapping[str, Any]) -> ChatResponse:
    message = mapping(choice.get("message"))
    text = as_text(message.get("content")) or as_text(choice.get("text")) or as_text(result.get("response"))
    reasoning = as_text(message.get("reasoning_content")) or as_text(message.get("reasoning"))
    finish = FINISH_REASONS.get(str(choice.get("finish_reason")))
    return _response(text, finish, tool_calls(message.get("tool_calls")), reasoning)


def _responses(result: Mapping[str, Any]) -> ChatResponse:
    items = [item for item in result["output"] if isinstance(item, dict)]
    said = [_parts(item) for item in items if item.get("type") == "message"]
    thought = [_parts(item) for item in items if item.get("type") == "reasoning"]
    calls = tool_calls([item for item in items if item.get("type") == "function_call"])
    reason = mapping(result.get("incomplete_details")).get("reason") or result.get("status") or "completed"
    finish = "tool_calls" if calls and reason == "completed" else FINISH_REASONS.get(str(reason))
    return _response("".join(said) or as_text(result.get("output_text")), finish, calls, "".join(thought))


def _parts(item: Mapping[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    return parts if isinstance(parts, str) else "".join(str(mapping(part).get("text") or "") for part in parts)


def _response(
    text: str | None,
    finish: FinishReason | None,
    calls: tuple[Mapping[str, Any], ...],
    reasoning: str | None = None,
) -> ChatResponse:
    # No words are no answer where the model called tools, or spent its tokens on reasoning.
    text = None if not text and (calls or reasoning) else text
    return ChatResponse(
        text=text, finish_reason=finish, usage=Usage(), model="", reasoning=reasoning or None, tool_calls=calls
    )


def _warnings(response: ChatResponse, finish: FinishReason | None, max_tokens: int) -> Iterator[str]:
    if finish == "length" and response.text is None and response.reasoning:
        yield f"all {max_tokens} tokens went into reasoning: raise max_tokens"
    elif finish == "length":
        yield f"the answer is cut off at {max_tokens} tokens: raise max_tokens"
    elif response.text is None and not response.tool_calls:
        yield "the model sent no text"
    for call in response.tool_calls:
        if not _is_json(call["function"]["arguments"]):
            yield f"the arguments for {call['function']['name']} are no JSON"


def _is_json(text: str) -> bool:
    try:
        pydantic_core.from_json(text)
    except ValueError:
        return False
    return True


def _excerpt(value: Any) -> str:
    return pydantic_core.to_json(value).decode()[:200]
