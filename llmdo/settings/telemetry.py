"""OpenTelemetry's environment variables, as far as llmdo decides by them. Its SDK and exporters read the same ones."""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import unquote

Signal = Literal["traces", "metrics"]

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_OF_SIGNALS = ("TRACES", "METRICS")
OTLP_ENDPOINTS = (_ENDPOINT, *(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in _OF_SIGNALS))
# Lists of NAME=VALUE, whose values are keys.
OTLP_HEADERS = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    *(f"OTEL_EXPORTER_OTLP_{signal}_HEADERS" for signal in _OF_SIGNALS),
)
# Not secret, and good for each process of a run alike.
OTEL_PLAIN = (
    *OTLP_ENDPOINTS,
    *("OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"),
    *("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
    *(_PROTOCOL, "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION"),
    *("OTEL_METRIC_EXPORT_INTERVAL", _TEMPORALITY),
)
_PROTOCOLS = ("", "http/protobuf")
USUAL_RATIO = 0.01  # of the calls that succeed have a span


def is_exported(signal: Signal) -> bool:
    """Whether the environment asks to export a signal: by an address for it, or by ``OTEL_…_EXPORTER=otlp``."""
    if _text("OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporter = _text(f"OTEL_{signal.upper()}_EXPORTER")
    if exporter:
        return exporter == "otlp"
    return bool(_text(_ENDPOINT) or _text(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"))


def sampled_part() -> float | None:
    """The part of the calls that gets a span, by OTEL_TRACES_SAMPLER and its ARG; None: not even those that fail.

    A call has no parent that was sampled or not, so ``parentbased_…`` means what it means for the first span of a
    trace.
    """
    sampler = _text("OTEL_TRACES_SAMPLER").lower().removeprefix("parentbased_")
    if sampler == "always_off":
        return None
    if sampler == "always_on":
        return 1.0
    if sampler != "traceidratio":
        return USUAL_RATIO
    try:
        return min(1.0, max(0.0, float(_text("OTEL_TRACES_SAMPLER_ARG") or 1.0)))
    except ValueError:
        return USUAL_RATIO


def is_exported_as_deltas() -> bool:
    """Whether histograms are exported as what is new since the last export, and not as all since the start."""
    return _text(_TEMPORALITY).lower() in ("delta", "lowmemory")


def telemetry_problems() -> list[str]:
    """What of the settings cannot be heeded, in sentences."""
    found = []
    for name in (_PROTOCOL, *(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL" for signal in _OF_SIGNALS)):
        if _text(name) not in _PROTOCOLS:
            found.append(f"{name}={_text(name)} is not supported, http/protobuf is used: give its port, often 4318")
    for signal in _OF_SIGNALS:
        name = f"OTEL_{signal}_EXPORTER"
        if _text(name) not in ("", "otlp", "none"):
            found.append(f"{name}={_text(name)} is not supported: set it to otlp, or to none")
    sampler = _text("OTEL_TRACES_SAMPLER")
    if sampler.lower().removeprefix("parentbased_") not in ("", "always_on", "always_off", "traceidratio"):
        found.append(f"OTEL_TRACES_SAMPLER={sampler} is not supported: set traceidratio, always_on or always_off")
    try:
        float(_text("OTEL_TRACES_SAMPLER_ARG") or 1.0)
    except ValueError:
        found.append("OTEL_TRACES_SAMPLER_ARG is not a number: set the part of the calls, as in 0.01")
    return found


def secrets_in_headers(text: str) -> tuple[str, ...]:
    """The values of a list of headers, as they are written and as they are sent; of "Bearer KEY" the key, too."""
    values = [value.strip() for _, _, value in (pair.partition("=") for pair in text.split(","))]
    found = [form for value in values for form in (value, unquote(value), unquote(value).rpartition(" ")[2])]
    return tuple(dict.fromkeys(one for one in found if one))


def _text(name: str) -> str:
    return os.environ.get(name, "").strip()
