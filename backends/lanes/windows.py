"""Background windows: one call asks for an answer within 2 or 8 hours, and looks fetch it by its name.

Source: the types of OpenAI's client, ``background_options.completion_window``.
"""

from __future__ import annotations

from collections.abc import Mapping

# By its name: within how many seconds the answers of a window are promised.
PROMISED_S: Mapping[str, float] = {"2h": 7200.0, "8h": 28_800.0}
# Looks a second at all answers of a model that are out: they cost nothing, but are calls like others.
LOOKS_PER_S = 20.0
# The part of the calls that a minute may have, which looks may be.
LOOKS_PART = 0.25


def named(window: str, response: str) -> str:
    """By which an answer is followed and kept: its window, and the provider's name of it.

    >>> window_of(named("2h", "resp_1"))
    '2h'
    """
    return f"{window}:{response}"


def window_of(name: str) -> str:
    """The window of what is followed by this name, "" for a batch."""
    window, colon, _ = name.partition(":")
    return window if colon and window in PROMISED_S else ""


def response_of(name: str) -> str:
    """The provider's name of an answer; see ``named``."""
    return name.partition(":")[2]


def look_s(out: int, rpm: float | None) -> float:
    """Seconds between two looks at one answer, when ``out`` of them are awaited and ``rpm`` calls a minute are allowed.

    >>> look_s(6000, None), look_s(60, 240)
    (300.0, 60.0)
    """
    return out / min(LOOKS_PER_S, LOOKS_PART * (rpm or float("inf")) / 60)
