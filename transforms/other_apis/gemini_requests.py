"""Requests of Gemini's generateContent and embedContent as bodies of chat completions and embeddings.

Source: ai.google.dev/api/generate-content, and the types of Google's own client. What would make another answer is
refused; what would not is left out, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.backends.errors import short
from llmdo.transforms.lines.broken_json import kind_of
from llmdo.transforms.other_apis.gemini_contents import Contents, camel
from llmdo.transforms.other_apis.gemini_schemas import json_schema
from llmdo.transforms.other_apis.translation import (
    Untranslatable,
    WarnOf,
    fields_at,
    items_at,
    text_at,
    warn_of_others,
)

# Settings with the same meaning in both, and their names in a chat.
_SAME = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxOutputTokens": "max_tokens",
    "stopSequences": "stop",
    "candidateCount": "n",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
}
_ABOUT_FORMAT = frozenset({"responseMimeType", "responseSchema", "responseJsonSchema", "responseFormat"})
_OF_REQUEST = frozenset(
    "model contents systemInstruction generationConfig tools toolConfig cachedContent serviceTier".split()
)
# Fields of a request beside which others are the user's own.
GEMINI_FIELDS = _OF_REQUEST | frozenset(
    """safetySettings system_instruction generation_config tool_config safety_settings cached_content
    service_tier""".split()
)
_TIERS = {"flex": "flex", "priority": "priority", "standard": "default"}
_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}
_OF_FUNCTION = ("name", "description", "parameters", "parametersJsonSchema")


def is_for_gemini(line: Mapping[str, Any]) -> bool:
    """Whether a line is a request of Gemini's API: it has contents with parts."""
    turns = line.get("contents")
    return isinstance(turns, list) and bool(turns) and all(isinstance(one, dict) and "parts" in one for one in turns)


def chat_of_contents(given: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    """The body of a chat that asks the same; ``warn`` gets a sentence for what is left out. Raises Untranslatable."""
    request = camel(given)
    if request.get("cachedContent"):
        raise Untranslatable("cachedContent is kept at Google, where only Gemini reads it: write it into contents")
    contents = Contents(warn)
    messages = contents.messages(request.get("contents"))
    if request.get("systemInstruction"):
        messages = [{"role": "system", "content": contents.system(request["systemInstruction"])}, *messages]
    body: dict[str, Any] = {**_model(request), "messages": messages}
    body |= _settings(camel(fields_at(request.get("generationConfig", {}), "generationConfig")), warn)
    tools = _tools(request.get("tools", []), warn)
    body |= _called(tools, camel(fields_at(request.get("toolConfig", {}), "toolConfig")), warn)
    tier = text_at(request.get("serviceTier", ""), "serviceTier").lower()
    body |= {"service_tier": _TIERS[tier]} if tier in _TIERS else {}
    warn_of_others(request, _OF_REQUEST, warn)
    return body


def embedding_of_content(given: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    """The body of an embedding of the same text. Raises Untranslatable."""
    request = camel(given)
    content = Contents(warn).messages(request.get("content"))
    parts = content[0]["content"] if content else ""
    texts = [parts] if isinstance(parts, str) else [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Untranslatable("content holds more than text, which is all that is embedded here: give text alone")
    warn_of_others(request, ("model", "content", "outputDimensionality"), warn)
    body = {**_model(request), "input": "\n".join(texts)}
    return body | ({"dimensions": request["outputDimensionality"]} if "outputDimensionality" in request else {})


def _model(request: Mapping[str, Any]) -> dict[str, Any]:
    named = request.get("model")
    if isinstance(named, str) and "models/" in named and not named.startswith("tunedModels/"):
        named = named.rpartition("models/")[2]
    return {"model": named} if named else {}


def _settings(config: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    body = {_SAME[name]: value for name, value in config.items() if name in _SAME}
    if isinstance(top_k := body.get("top_k"), float) and top_k.is_integer():
        body["top_k"] = int(top_k)
    modalities = items_at(config.get("responseModalities", []), "generationConfig.responseModalities")
    if odd := [one for one in modalities if str(one).upper() not in ("TEXT", "MODALITY_UNSPECIFIED")]:
        raise Untranslatable(f"responseModalities asks for {short(str(odd[0]))}: here an answer is text, so omit it")
    thinking = camel(fields_at(config.get("thinkingConfig", {}), "generationConfig.thinkingConfig"))
    level = text_at(thinking.get("thinkingLevel", ""), "thinkingConfig.thinkingLevel").lower()
    if level and not level.endswith("unspecified"):
        body["reasoning_effort"] = level
    if "thinkingBudget" in thinking:
        warn("thinkingBudget was left out: other models have no budget for it; thinkingLevel is translated")
    warn_of_others(thinking, ("thinkingLevel", "thinkingBudget"), warn)
    body |= _format(config)
    warn_of_others(config, _SAME.keys() | _ABOUT_FORMAT | {"thinkingConfig", "responseModalities"}, warn)
    return body


def _format(config: Mapping[str, Any]) -> dict[str, Any]:
    """The response_format of a chat."""
    text = camel(fields_at(camel(_response_format(config)).get("text", {}), "responseFormat.text"))
    media_type = text_at(config.get("responseMimeType", text.get("mimeType", "")), "responseMimeType").lower()
    schema: Mapping[str, Any] | None = None
    if config.get("responseSchema"):
        schema = json_schema(config["responseSchema"], "responseSchema")
    elif plain := config.get("responseJsonSchema") or text.get("schema"):
        schema = fields_at(plain, "responseJsonSchema")
    if media_type == "application/json" and schema is None:
        return {"response_format": {"type": "json_object"}}
    if media_type == "application/json" or (schema is not None and media_type in ("", "application_json")):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    if media_type not in ("", "text/plain"):
        raise Untranslatable(f"responseMimeType {short(media_type)} cannot be asked for: use application/json")
    return {}


def _response_format(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """One of the formats that an answer may have, of which only text is asked for here."""
    given = config.get("responseFormat", {})
    listed = given if isinstance(given, list) else [given]
    if len(listed) != 1 or not isinstance(listed[0], dict) or listed[0].keys() - {"text"}:
        if listed:
            raise Untranslatable("responseFormat must be one of text: here an answer is text or JSON")
        return {}
    return listed[0]


def _tools(given: object, warn: WarnOf) -> list[dict[str, Any]]:
    tools: list[dict[str, Any]] = []
    for at, each in enumerate(items_at([given] if isinstance(given, dict) else given, "tools")):
        tool = camel(fields_at(each, f"tools.{at}"))
        if odd := sorted(tool.keys() - {"functionDeclarations"}):
            raise Untranslatable(f"tools.{at} has {short(odd[0])}, which only Google runs: give functionDeclarations")
        declared = tool.get("functionDeclarations", [])
        for number, one in enumerate(items_at(declared, f"tools.{at}.functionDeclarations")):
            tools.append(_function(one, f"tools.{at}.functionDeclarations.{number}", warn))
    return tools


def _function(given: object, place: str, warn: WarnOf) -> dict[str, Any]:
    declared = camel(fields_at(given, place))
    warn_of_others(declared, _OF_FUNCTION, warn)
    function: dict[str, Any] = {"name": text_at(declared.get("name"), f"{place}.name")}
    if declared.get("description"):
        function["description"] = declared["description"]
    if declared.get("parameters"):
        function["parameters"] = json_schema(declared["parameters"], f"{place}.parameters")
    elif declared.get("parametersJsonSchema"):
        function["parameters"] = fields_at(declared["parametersJsonSchema"], f"{place}.parametersJsonSchema")
    return {"type": "function", "function": function}


def _called(tools: list[dict[str, Any]], config: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    """The tools, of which only those that may be called, and whether one has to be called."""
    warn_of_others(config, ("functionCallingConfig",), warn)
    calling = camel(fields_at(config.get("functionCallingConfig", {}), "functionCallingConfig"))
    warn_of_others(calling, ("mode", "allowedFunctionNames"), warn)
    mode = text_at(calling.get("mode", "MODE_UNSPECIFIED"), "functionCallingConfig.mode").upper()
    allowed = items_at(calling.get("allowedFunctionNames", []), "functionCallingConfig.allowedFunctionNames")
    if allowed:
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
        if not tools:
            raise Untranslatable(f"allowedFunctionNames names no function of tools ({kind_of(allowed)}): correct it")
    if not tools:
        return {}
    if mode != "MODE_UNSPECIFIED" and mode not in _MODES:
        raise Untranslatable(f"functionCallingConfig.mode is {short(mode)}: write one of {', '.join(_MODES)}")
    return {"tools": tools, **({"tool_choice": _MODES[mode]} if mode in _MODES else {})}
