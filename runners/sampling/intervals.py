"""What a few lines, drawn so that each line was as likely as any other, say about a sum over all lines.

An amount (tokens, dollars, seconds) is predicted from a line's length, which is known of all lines, as ``a + b *
length`` with ``a, b >= 0``. What is uncertain is by how much the lines that were not drawn differ from that. A few
lines say little about a long tail, so several bounds are computed, and the widest ones hold: Student's, for what is
nearly normal; Student's for the few long lines that make up most of the sum; Cox's, for what is skewed as a lognormal
is; and one for a kind of lines of which none was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

# The quantiles are those of 99 % intervals: with 10 to 20 lines of a long tail these hold for 95 % and more.
_SURE, _USUAL, _USUAL_Z = 0.995, 0.975, 1.96
# A kind of which no line was drawn is assumed to cost twice as much as the dearest line that was; and nothing to make
# the mean dearer than if as many lines as may have been missed cost six times as much.
_UNSEEN, _TAIL = 2.0, 6.0
# Logarithms are taken of what exceeds this part of the smallest: a constant, such as a system prompt, hides a tail.
_CONSTANT = 0.8


@dataclass(frozen=True, slots=True)
class Range:
    """A sum over all lines: the estimate, and a 95 % interval around it."""

    estimate: float
    low: float
    high: float


def sum_over(drawn: Sequence[tuple[float, float]], lines: float, length: float, error: float = 0.0) -> Range:
    """The sum of an amount over all lines.

    Args:
        drawn: length and amount of each line of the sample.
        lines: how many there are in all, those drawn among them.
        length: the sum of all their lengths.
        error: relative standard error of these two, where they are estimates themselves.
    """
    known, n = math.fsum(amount for _, amount in drawn), len(drawn)
    rest = max(0.0, lines - n)
    some = [(x, y) for x, y in drawn if y > 0]  # the others failed, at no cost, whatever their length
    if not rest or not some:
        return Range(known, known, known)
    a, b = _line_through(some)
    predicted = a * rest + b * max(0.0, length - math.fsum(x for x, _ in drawn))
    fitted = [a + b * x for x, _ in some]
    middle = len(some) / n * known / math.fsum(fitted)
    low, high = _between(fitted, [y / m for m, (_, y) in zip(fitted, some, strict=True)], n, middle)
    part = math.sqrt(rest / lines)  # where most lines were drawn, the rest is less uncertain
    down = math.hypot((1 - low / middle) * part, _USUAL_Z * error)
    up = math.hypot((high / middle - 1) * part, _USUAL_Z * error)
    center = predicted * middle
    return Range(known + center, known + max(0.0, center * (1 - down)), known + center * (1 + up))


def _line_through(some: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """``a`` and ``b`` by least squares, neither below 0; a line weighs the less, the longer it is."""
    usual = fmean(x for x, _ in some) or 1.0
    weights = [1 / (x + usual) for x, _ in some]
    mean_x, mean_y = (fmean((one[i] for one in some), weights) for i in (0, 1))
    spread = fmean(((x - mean_x) ** 2 for x, _ in some), weights)
    together = fmean(((x - mean_x) * (y - mean_y) for x, y in some), weights)
    b = max(0.0, together / spread) if spread > 1e-9 * mean_x**2 and len(some) > 2 else 0.0
    a = mean_y - b * mean_x
    return (a, b) if a >= 0 else (0.0, mean_y / mean_x)


def _between(fitted: Sequence[float], ratios: Sequence[float], n: int, middle: float) -> tuple[float, float]:
    """Between what the mean of amounts by their predictions is, if ``n`` lines were drawn and ``ratios`` are those of
    the ones that did not fail.
    """
    share, most = len(ratios) / n, max(ratios)
    failed_low, failed_high = share_between(n - len(ratios), n)
    missed = share_between(0, n)[1]
    lows, highs = [middle * (1 - failed_high) / share], [middle * (1 - missed) + missed * _UNSEEN * most]
    if len(ratios) > 1:
        mean = fmean(fitted)
        off = [m / mean * (r - middle / share) for m, r in zip(fitted, ratios, strict=True)]
        squares = math.fsum(one * one for one in off) + (n - len(ratios)) * middle**2
        half = student(_SURE, n - 1) * math.sqrt(squares / (n * (n - 1)))
        heavy = max(2.0, math.fsum(fitted) ** 2 / math.fsum(m * m for m in fitted))  # lines that make up the sum
        half = max(half, student(_USUAL, int(heavy) - 1) * stdev(ratios) / math.sqrt(heavy))
        least = _CONSTANT * min(ratios)
        cox_low, cox_high = _cox(ratios)
        tail = max(cox_high, least + _cox([one - least for one in ratios])[1]) * (1 - failed_low)
        lows += [middle - half, cox_low * (1 - failed_high)]
        highs += [middle + half, min(tail, middle + missed * _TAIL * most)]
    return max(0.0, min(lows)), max(highs)


def _cox(amounts: Sequence[float]) -> tuple[float, float]:
    """Between what the mean of a lognormal is (Olsson 2005, J. Statistics Education 13/1)."""
    logs = [math.log(one) for one in amounts]
    n, square = len(logs), stdev(logs) ** 2
    middle = fmean(logs) + square / 2
    half = student(_SURE, n - 1) * math.sqrt(square / n + square**2 / (2 * (n - 1)))
    return math.exp(middle - half), math.exp(min(600.0, middle + half))


def share_between(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, where ``hits`` of ``n`` were seen.

    >>> [round(bound, 3) for bound in share_between(0, 20)]
    [0.0, 0.161]
    """
    square = _USUAL_Z**2
    middle, half = (hits + square / 2), _USUAL_Z * math.sqrt(hits * (n - hits) / n + square / 4)
    return max(0.0, middle - half) / (n + square), min(n + square, middle + half) / (n + square)


def student(quantile: float, freedom: int) -> float:
    """A quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish and Fisher's, 1 % off at 3.

    >>> [round(student(0.975, freedom), 2) for freedom in (1, 2, 4, 9, 19)]
    [12.71, 4.3, 2.78, 2.26, 2.09]
    """
    if freedom <= 1:
        return math.tan(math.pi * (quantile - 0.5))
    if freedom == 2:
        off = 2 * quantile - 1
        return off * math.sqrt(2 / (1 - off * off))
    z = NormalDist().inv_cdf(quantile)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
