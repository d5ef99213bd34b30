"""Numbers as people read them."""

from __future__ import annotations


def counted(number: int, thing: str, things: str = "") -> str:
    """A number of things.

    >>> counted(1, "line"), counted(2_000, "line"), counted(0, "try", "tries")
    ('1 line', '2,000 lines', '0 tries')
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def lasting(seconds: float) -> str:
    """A time span in its two largest units.

    >>> lasting(12.3), lasting(192), lasting(7_500), lasting(200_000)
    ('12 s', '3 min 12 s', '2 h 5 min', '2 d 7 h')
    """
    left = round(seconds)
    for size, unit, less, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // less
            return f"{left // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{left} s"
