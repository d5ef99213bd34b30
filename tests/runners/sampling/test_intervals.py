"""95 of 100 sums lie in their intervals, whatever the lengths and the answers are like, and these are of use."""

import math
import random
from statistics import median

import pytest

from llmdo.runners.sampling.intervals import Range, share_between, student, sum_over

LINES, INPUTS = 400, 100

LENGTHS = {
    "constant": lambda r: 200.0,
    "normal": lambda r: max(20.0, r.gauss(400, 100)),
    "lognormal 1": lambda r: 10 + 200 * r.lognormvariate(0, 1),
    "lognormal 1.5": lambda r: 10 + 200 * r.lognormvariate(0, 1.5),
    "bimodal": lambda r: r.choice((100, 3000)) * r.uniform(0.8, 1.2),
}
# Tokens of an answer by the length of its line, and the median width that an interval of 20 lines has at most: its ends
# as parts of the estimate.
ANSWERS = {
    "constant": (lambda x, r: 50.0, 0.8, 1.25),
    "normal": (lambda x, r: max(1.0, r.gauss(150, 40)), 0.65, 1.5),
    "as the line": (lambda x, r: x / 4, 0.75, 1.35),
    "about as the line": (lambda x, r: x / 4 * r.lognormvariate(0, 0.5), 0.4, 2.0),
    "lognormal 1": (lambda x, r: 100 * r.lognormvariate(0, 1), 0.35, 3.2),
    "lognormal 1.5": (lambda x, r: 60 * r.lognormvariate(0, 1.5), 0.1, 5.0),
    "cut off by max_tokens": (lambda x, r: min(300.0, 100 * r.lognormvariate(0, 1.2)), 0.45, 2.9),
    "bimodal": (lambda x, r: r.choice((20.0, 400.0)), 0.3, 3.5),
}


def drawn_evenly(lengths, count, r):
    """As drawing does it: over all powers of two of the lengths."""
    classes, at, found, tooth = {}, 0, [], r.random() * len(lengths) / count
    for i, length in enumerate(lengths):
        classes.setdefault(int(length).bit_length(), []).append(i)
    for size in sorted(classes):
        at += len(classes[size])
        teeth = max(0, math.ceil((at - tooth) * count / len(lengths)))
        tooth += teeth * len(lengths) / count
        found += r.sample(classes[size], min(teeth, len(classes[size])))
    return found


@pytest.mark.fast("20-lognormal 1.5-*", "20-bimodal-*")
@pytest.mark.parametrize("failing", [0.0, 0.05], ids=["", "5 % failing"])
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("count", [10, 20])
def test_95_of_100_sums_are_in_their_intervals(count, lengths, answers, failing):
    r = random.Random(f"{lengths} {answers} {failing}")
    answer, least, most = ANSWERS[answers]
    inside, ends = 0, []
    for _ in range(INPUTS):
        xs = [LENGTHS[lengths](r) for _ in range(LINES)]
        ys = [0.0 if r.random() < failing else 0.3 * (x / 4 + 30) + 2.0 * answer(x, r) for x in xs]
        found = sum_over([(xs[i], ys[i]) for i in drawn_evenly(xs, count, r)], LINES, sum(xs))
        inside += found.low <= sum(ys) * (1 + 1e-9) and sum(ys) * (1 - 1e-9) <= found.high
        ends.append((found.low / found.estimate, found.high / found.estimate))
    low, high = (median(one[i] for one in ends) for i in (0, 1))
    print(f"{count} lines, {lengths}, {answers}, {failing:.0%} failing: {inside} of {INPUTS}, {low:.2f} to {high:.2f}")
    assert inside >= 95
    assert count == 10 or (low >= least - failing and high <= most + 4 * failing)


def test_a_sample_of_all_lines_leaves_nothing_uncertain():
    assert sum_over([(1.0, 2.0), (3.0, 5.0)], 2, 4.0) == Range(7.0, 7.0, 7.0)
    assert sum_over([], 0, 0.0) == Range(0.0, 0.0, 0.0)
    assert sum_over([(5.0, 0.0)], 1, 5.0) == Range(0.0, 0.0, 0.0)


def test_few_lines_left_are_less_uncertain_than_many():
    drawn = [(100.0, y) for y in (1.0, 2.0, 4.0, 3.0, 2.0, 5.0)]
    widths = [(one.high - one.low) / one.estimate for n in (7, 60, 6000) for one in [sum_over(drawn, n, 100.0 * n)]]
    assert widths[0] < widths[1] < widths[2]


def test_lines_that_are_only_estimated_widen_the_interval():
    drawn = [(100.0, 1.0)] * 20
    sure, unsure = (sum_over(drawn, 1000, 100_000.0, error) for error in (0.0, 0.2))
    assert unsure.low < sure.low <= sure.estimate <= sure.high < unsure.high


@pytest.mark.parametrize("amounts", [[1.0], [1.0, 9.0], [0.0, 0.0, 3.0], [1e-12] * 3, [1e9, 1e-9, 1.0]])
def test_any_sample_has_an_interval_around_its_estimate(amounts):
    found = sum_over([(7.0, y) for y in amounts], 1000, 7000.0)
    assert 0 <= found.low <= found.estimate <= found.high < math.inf


def test_a_longer_line_is_predicted_to_cost_more():
    drawn = [(x, 10 + 0.25 * x) for x in (10.0, 20.0, 50.0, 90.0)]
    found = sum_over(drawn, 100, 50_000.0)
    assert found.estimate == pytest.approx(100 * 10 + 0.25 * 50_000)


@pytest.mark.parametrize(
    ("freedom", "quantile", "t"), [(3, 0.975, 3.182), (3, 0.995, 5.841), (9, 0.995, 3.250), (60, 0.975, 2.000)]
)
def test_students_quantiles_are_those_of_the_tables(freedom, quantile, t):
    assert student(quantile, freedom) == pytest.approx(t, rel=0.01)


def test_a_share_lies_between_0_and_1():
    assert share_between(0, 10)[0] == 0.0 and share_between(10, 10)[1] == 1.0
    assert share_between(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
