"""Workers AI's results, in all their shapes, as our responses. Pure functions; the bodies are parsed JSON.

Text generation answers in one of three shapes, by model: native ``{"response": …}``, OpenAI's chat completion
``{"choices": […]}`` and OpenAI's Responses ``{"output": […]}``; with or without the envelope ``{"result": …}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic_core

from llmdo.backends.errors import BadReply, ModelError, call_known
from llmdo.backends.finish_reasons import finish_error, finish_of, finish_warning
from llmdo.backends.http.reply_json import excerpt, mapping
from llmdo.backends.openai.messages import as_text, tool_calls
from llmdo.backends.openai.raw import failed_response, read_response
from llmdo.backends.openai.shapes import (
    answering_model,
    failed_choice,
    no_choice,
    read_choices,
    read_usage,
    warnings_of,
)
from llmdo.backends.responses import ChatResponse, FinishReason
from llmdo.backends.usage import Usage


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call brought: the result without its envelope, and what its headers say, a gateway's in ``details``."""

    result: Any
    request_id: str | None = None
    neurons: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def reading(self) -> AbstractContextManager[None]:
        """While the result is read: errors get the call's id, and what the reply says that it used."""
        return call_known(request_id=self.request_id, usage=self._usage)

    def _usage(self) -> Usage | None:
        usage = read_usage(self.result, self.neurons)
        return None if usage == Usage() else usage


# Fields of a result that a ChatResponse has of its own, or that its row has by another name.
_READ = frozenset({"description", "finish_reason", "object", "response", "status", "tool_calls"})


def unwrap(body: Any) -> Any:
    """The result inside Cloudflare's envelope, or the body itself where there is no envelope."""
    return body["result"] if isinstance(body, dict) and "result" in body and "success" in body else body


def read_chat(reply: Reply, model: str, max_tokens: int) -> ChatResponse:
    """Reads any shape of text generation. ``max_tokens``: what was sent, to distinguish a cut answer from a whole one.

    Raises ContentFiltered, and BadReply for any other shape.
    """
    result = reply.result
    usage = read_usage(result, reply.neurons)
    with reply.reading():
        response = _read_result(result, model)
    finish = response.finish_reason
    if finish is None and usage.output_tokens >= max_tokens:
        finish = "length"  # the native shape has no finish reason
    answered, substituted = answering_model(result, model, native=True)
    odd = (*warnings_of(response, max_tokens, finish), *_no_json(response), *substituted)
    return replace(
        response,
        finish_reason=finish,
        usage=usage,
        model=answered,
        request_id=reply.request_id,
        warnings=(*reply.warnings, *response.warnings, *odd),
        details=reply.details,
    )


def _read_result(result: Any, model: str) -> ChatResponse:
    if (error := _failed(result, model)) is not None:
        raise error
    response = _shape(result) if isinstance(result, dict) else None
    if response is None:
        raise BadReply(
            f"{model} sent a reply that is not a chat model's answer ({excerpt(result)}): "
            "name a text generation model, or send this model's own input"
        )
    return response


def _failed(result: Any, model: str) -> ModelError | None:
    """The error of a result that is not an answer, though its shape is that of one."""
    fields = mapping(result)
    choices = fields.get("choices")
    if isinstance(choices, list) and choices:
        choice = mapping(choices[0])
        otherwise = {"text": fields.get("response")} if choice.get("message", 0) is None else {}
        return failed_choice({**otherwise, **choice}, model)
    if isinstance(fields.get("output"), list):
        return failed_response(fields, model)
    return finish_error(fields.get("finish_reason"), model) or no_choice(fields, model)


def _shape(result: Mapping[str, Any]) -> ChatResponse | None:
    if isinstance(result.get("choices"), list) and result["choices"]:
        response = read_choices(result, result.get("response"))
        return replace(response, body={name: value for name, value in response.body.items() if name != "response"})
    if isinstance(result.get("output"), list):
        return read_response(result)
    if isinstance(result.get("description"), str):  # image to text
        return _response(result, result["description"], None, ())
    return _native(result) if "response" in result else None


def _native(result: Mapping[str, Any]) -> ChatResponse:
    calls = tool_calls(result.get("tool_calls"))
    finish = finish_of(result.get("finish_reason"))
    response = _response(result, as_text(result["response"]), finish or ("tool_calls" if calls else None), calls)
    odd = finish_warning(result.get("finish_reason"))
    return replace(response, warnings=(odd,)) if odd else response


def _response(
    result: Mapping[str, Any],
    text: str | None,
    finish: FinishReason | None,
    calls: tuple[Mapping[str, Any], ...],
    reasoning: str | None = None,
) -> ChatResponse:
    # Empty text is not an answer where the model called tools, or spent its tokens on reasoning.
    text = None if not text and (calls or reasoning) else text
    return ChatResponse(
        text=text,
        finish_reason=finish,
        usage=Usage(),
        model="",
        reasoning=reasoning or None,
        tool_calls=calls,
        body={name: value for name, value in result.items() if name not in _READ},
    )


def _no_json(response: ChatResponse) -> Iterator[str]:
    for call in response.tool_calls:
        if "function" in call and not _is_json(call["function"]["arguments"]):
            yield f"the arguments for {call['function']['name']} are not valid JSON"


def _is_json(text: str) -> bool:
    try:
        pydantic_core.from_json(text)
    except ValueError:
        return False
    return True
