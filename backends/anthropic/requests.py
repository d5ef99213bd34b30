"""Our requests as bodies of Anthropic's Messages API. Pure functions.

Source: platform.claude.com/docs/en/api/messages, and the types of Anthropic's own client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic_core import to_json

from llmdo.backends.anthropic.blocks import Block, system_and_turns
from llmdo.backends.anthropic.models import Traits, traits_of
from llmdo.backends.anthropic.schemas import native_schema
from llmdo.backends.errors import InvalidRequest
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.json_mode.answers import check_format, schema_of, wants_json
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS, bounded, checked_token_limit
from llmdo.backends.parameters import Dialect, translate
from llmdo.backends.requests import ChatRequest, RawRequest

PROVIDER = "anthropic"
KEY_VARIABLE = "ANTHROPIC_API_KEY"
MESSAGES_PATH = "messages"  # as RawRequest.path: a body of this API
_Warn = Callable[[str], object]
# The tool by which an answer in JSON comes from models that take no schema for it.
JSON_TOOL = "json_answer"
# By the service's own structured outputs; by a tool that the model must call; by a sentence.
JsonWay = Literal["format", "tool", "words"]
_INNER = "answer"  # the field of its input that holds an answer that is not an object
_ONLY_JSON = "Answer with nothing but one JSON object."
_FITTING = "Answer with nothing but JSON that fits this JSON Schema: "
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
_TAKEN = frozenset(
    """cache_control container context_management inference_geo mcp_servers metadata output_config parallel_tool_calls
    reasoning_effort response_format service_tier speed stop stop_sequences thinking tool_choice
    tools user""".split()
)
ANTHROPIC_DIALECT = Dialect(
    known=_TAKEN | _SAMPLING, renamed={"stop": "stop_sequences"}, bounds={"temperature": (0.0, 1.0)}
)
_WITHOUT_SAMPLING = replace(ANTHROPIC_DIALECT, known=_TAKEN)
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
# reasoning_effort → output_config.effort; a model without it gets a part of the limit of tokens as its budget.
_EFFORTS = {"minimal": "low", **{name: name for name in ("low", "medium", "high", "xhigh", "max")}}
_BUDGETS = {"minimal": 0.0, "low": 0.25, "medium": 0.5, "high": 0.75, "xhigh": 0.75, "max": 0.75}
_LEAST_BUDGET = 1024


def dialect_of(model: str) -> Dialect:
    """How the service takes parameters of a chat with this model."""
    return ANTHROPIC_DIALECT if traits_of(model).sampling else _WITHOUT_SAMPLING


def json_way(request: ChatRequest) -> JsonWay | None:
    """How an answer that fits a schema is asked for; None where there is no schema."""
    schema = _schema_wanted(request.parameters.get("response_format"))
    if schema is None:
        return None
    if not traits_of(request.model).formats:
        return "tool"
    return "words" if native_schema(schema) is None else "format"


def _schema_wanted(wanted: Any) -> Mapping[str, Any] | None:
    schema = schema_of(wanted) if wants_json(wanted) and wanted["type"] == "json_schema" else None
    return schema if isinstance(schema, dict) else None


def tool_answer(given: Any) -> Any:
    """The answer in the input of JSON_TOOL."""
    return mapping(given).get(_INNER)


def chat_body(request: ChatRequest, warn: _Warn = lambda _: None, way: JsonWay | None = None) -> dict[str, Any]:
    """The body of a conversation, always with a limit of tokens. Raises InvalidRequest.

    ``way``: how an answer that fits a schema is asked for; by default see json_way.
    """
    model, traits = request.model, traits_of(request.model)
    if (wanted := request.parameters.get("response_format")) is not None:
        check_format(wanted, model, PROVIDER)
    limit = checked_token_limit(request.parameters) or DEFAULT_MAX_TOKENS
    system, turns = system_and_turns(request.messages, warn)
    given, changed = translate(_with_tools(request.parameters), dialect_of(model), model)
    for warning in (*changed, *bounded(request.parameters)):
        warn(warning)
    body: dict[str, Any] = {"model": model, "max_tokens": limit, "messages": turns}
    body |= {"system": system} if system else {}
    body |= {name: value for name, value in given.items() if name not in _HANDLED and value is not False}
    if "stop_sequences" in given:
        stop = given["stop_sequences"]
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    body |= _tools(given, model, warn)
    body |= _about_the_caller(given, warn)
    _think(body, given.get("reasoning_effort"), traits, warn)
    if wants_json(wanted):
        _want_json(body, _schema_wanted(wanted), way or json_way(request))
    _sample(body, warn)
    return body


_HANDLED = frozenset(
    """metadata parallel_tool_calls reasoning_effort response_format service_tier stop_sequences
    tool_choice tools user""".split()
)


# Fields of a request as clients, Vertex AI and Bedrock write it: headers here, or an older name.
_AROUND = frozenset({"anthropic_beta", "anthropic_version", "betas", "output_format", "stream"})


def raw_message_body(request: RawRequest) -> dict[str, Any]:
    """The body of a request that is written for this API, as it is, with a limit of tokens. Raises InvalidRequest."""
    if request.path != MESSAGES_PATH:
        what = f"/v1/{request.path}" if request.path else f"input of a model's own ({', '.join(sorted(request.input))})"
        raise InvalidRequest(f"{request.model}: {PROVIDER} takes no {what}: give prompt or messages")
    body = {name: value for name, value in request.input.items() if name not in _AROUND}
    if (older := request.input.get("output_format")) is not None:  # the name of before output_config
        body["output_config"] = {"format": older, **mapping(body.get("output_config"))}
    limit = {} if body.get("max_tokens") is not None else {"max_tokens": DEFAULT_MAX_TOKENS}
    return {**body, **limit, "model": request.model}


def chat_without_turns(request: RawRequest) -> ChatRequest:
    """The schema that a request of this API wants, as a chat's; what is said to ask again has its place in it."""
    form = mapping(mapping(raw_message_body(request).get("output_config")).get("format"))
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.get("schema")}}
    parameters = {"response_format": wanted} if form.get("type") == "json_schema" else {}
    return ChatRequest(request.model, (), parameters, request.request_id)


def betas_of(request: RawRequest) -> str:
    """The header by which features are asked for that are still tried out; "" without any."""
    given = request.input.get("betas") or request.input.get("anthropic_beta")
    return ",".join(map(str, given)) if isinstance(given, list) else str(given or "")


def _with_tools(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the functions of OpenAI's older API as tools."""
    found = dict(parameters)
    functions, call = found.pop("functions", None), found.pop("function_call", None)
    if functions and not found.get("tools"):
        found["tools"] = functions
    if call is not None and found.get("tool_choice") is None:
        found["tool_choice"] = {"type": "function", "function": call} if isinstance(call, Mapping) else call
    return found


def _tools(given: Mapping[str, Any], model: str, warn: _Warn) -> Block:
    found: Block = {}
    if given.get("tools"):
        tools = given["tools"] if isinstance(given["tools"], list) else [given["tools"]]
        found["tools"] = [_tool(tool, f"tools.{at}") for at, tool in enumerate(tools)]
    choice = given.get("tool_choice")
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise InvalidRequest(f"{model}: tool_choice is {choice!r}: write one of {', '.join(_CHOICES)}, or a tool")
        choice = {"type": _CHOICES[choice]}
    elif isinstance(choice, Mapping) and choice.get("type") == "function":
        choice = {"type": "tool", "name": mapping(choice.get("function")).get("name")}
    if (several := given.get("parallel_tool_calls")) is not None and mapping(choice).get("type") != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": not several}
    if choice is not None and found:
        found["tool_choice"] = choice
    elif choice is not None:
        warn("tool_choice was left out: the request has no tools")
    return found


def _tool(tool: Any, place: str) -> Any:
    """A function as a tool; one of Anthropic's own as it is."""
    function = mapping(mapping(tool).get("function"))
    if not function and isinstance(tool, Mapping) and "name" in tool and "input_schema" not in tool:
        function = tool if tool.get("type") in (None, "function") else {}
    if not function:
        if mapping(tool).get("type") == "custom" and "custom" in tool:
            raise InvalidRequest(
                f"{place} takes any text, which Anthropic's tools do not: describe its input by a schema"
            )
        return tool
    more = {name: function[name] for name in ("description", "strict", "cache_control") if function.get(name)}
    more |= {"cache_control": tool["cache_control"]} if tool.get("cache_control") else {}
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function.get("name"), **more, "input_schema": schema}


def _about_the_caller(given: Mapping[str, Any], warn: _Warn) -> Block:
    """Whom it is for, and how urgent it is."""
    body: Block = {}
    metadata = mapping(given.get("metadata"))
    user = given.get("user") or metadata.get("user_id")
    if user:
        body["metadata"] = {"user_id": str(user)}
    if metadata.keys() - {"user_id"}:
        warn("metadata was left out: Anthropic knows no other field in it than user_id")
    if (tier := given.get("service_tier")) is not None:
        if tier in _TIERS:
            body["service_tier"] = _TIERS[tier]
        else:
            warn(f"service_tier was left out: Anthropic has no tier {tier!r}")
    return body


def _think(body: Block, effort: Any, traits: Traits, warn: _Warn) -> None:
    """How much a model thinks before it answers, by ``reasoning_effort``."""
    if effort is None:
        return
    if effort == "none":
        if traits.thinking == "adaptive":
            warn("reasoning_effort was changed from none to low: newer models of Anthropic always may think")
            effort = "low"
        else:
            return  # they think only if they are told to
    if effort not in _EFFORTS:
        warn(f"reasoning_effort was left out: Anthropic knows {', '.join(_EFFORTS)}, and not {effort!r}")
    elif traits.thinking in ("adaptive", "effort"):
        body["output_config"] = {"effort": _EFFORTS[effort], **mapping(body.get("output_config"))}
        if traits.thinking == "adaptive":
            body.setdefault("thinking", {"type": "adaptive"})
    elif traits.thinking == "never":
        warn(f"reasoning_effort was left out: {body['model']} cannot use it")
    elif body["max_tokens"] <= _LEAST_BUDGET:
        warn(f"reasoning_effort was left out: thinking takes more than {_LEAST_BUDGET:,} tokens of max_tokens")
    else:
        budget = max(_LEAST_BUDGET, int(body["max_tokens"] * _BUDGETS[effort]))
        body.setdefault("thinking", {"type": "enabled", "budget_tokens": budget})


def _want_json(body: Block, schema: Mapping[str, Any] | None, way: JsonWay | None) -> None:
    """Asks for an answer in JSON, and for one that fits the schema where there is one."""
    if schema is None or way == "words":
        said = _ONLY_JSON if schema is None else _FITTING + to_json(schema).decode()
        system = body.get("system", "")
        if isinstance(system, list):
            body["system"] = [*system, {"type": "text", "text": said}]
        else:
            body["system"] = f"{system}\n\n{said}" if system else said
    elif way == "format":
        form = {"type": "json_schema", "schema": native_schema(schema)}
        body["output_config"] = {**mapping(body.get("output_config")), "format": form}
    else:
        inner = {"type": "object", "properties": {_INNER: schema}, "required": [_INNER]}
        tool = {"name": JSON_TOOL, "description": "Gives the answer.", "input_schema": inner}
        body["tools"] = [*body.get("tools", []), tool]
        if mapping(body.get("tool_choice", {"type": "auto"})).get("type") == "auto":  # of several, any; else this one
            body["tool_choice"] = {"type": "any"}
        body.pop("thinking", None)  # a model that must call a tool may not think before


def _sample(body: Block, warn: _Warn) -> None:
    """Leaves out what cannot stand beside something else."""
    thinks = mapping(body.get("thinking")).get("type") == "enabled"
    for name in ("temperature", "top_k") if thinks else ():
        if body.pop(name, None) not in (None, 1):
            warn(f"{name} was left out: a model with a budget for thinking takes none")
    if "temperature" in body and "top_p" in body:
        del body["top_p"]
        warn("top_p was left out: Anthropic takes either temperature or top_p")
