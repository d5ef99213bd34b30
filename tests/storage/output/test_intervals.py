import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.output.intervals import Intervals

BYTES = 60
spans = st.tuples(st.integers(0, BYTES), st.integers(0, 12)).map(lambda s: (s[0], s[0] + s[1]))


def filled(wanted):
    """Intervals and the plain set of the same bytes, from the spans that do not overlap earlier ones."""
    intervals, plain = Intervals(), set()
    for start, stop in wanted:
        covered = set(range(start, stop))
        assert intervals.overlaps(start, stop) == bool(covered & plain)
        if covered & plain:
            with pytest.raises(ValueError, match="overlaps"):
                intervals.add(start, stop)
        else:
            intervals.add(start, stop)
            plain |= covered
    return intervals, plain


@given(st.lists(spans))
def test_it_holds_what_a_set_of_offsets_would_hold(wanted):
    intervals, plain = filled(wanted)
    assert {byte for start, stop in intervals.spans for byte in range(start, stop)} == plain


@given(st.lists(spans))
def test_ranges_are_sorted_apart_and_never_empty(wanted):
    intervals, _ = filled(wanted)
    edges = [edge for span in intervals.spans for edge in span]
    assert edges == sorted(set(edges))
    assert len(intervals) == len(intervals.spans)


@given(st.lists(spans), st.integers(0, BYTES + 15))
def test_gaps_are_exactly_what_is_missing(wanted, size):
    intervals, plain = filled(wanted)
    gaps = list(intervals.gaps(size))
    assert {byte for start, stop in gaps for byte in range(start, stop)} == set(range(size)) - plain
    assert all(start < stop for start, stop in gaps)
    assert intervals.covers(size) == (plain == set(range(size)))


@given(st.lists(spans), st.randoms())
def test_the_order_of_adding_does_not_matter(wanted, random):
    intervals, _ = filled(wanted)
    shuffled = list(intervals.spans)
    random.shuffle(shuffled)
    assert Intervals(shuffled) == intervals


@given(st.lists(spans))
def test_decoding_gives_back_what_was_encoded(wanted):
    intervals, _ = filled(wanted)
    assert Intervals.decode(intervals.encode()) == intervals


def test_the_code_is_distances_and_lengths():
    assert Intervals([(4096, 4216), (4223, 4311)]).encode() == "4096+120,7+88"
    assert Intervals().encode() == ""


def test_a_file_read_in_order_stays_one_range():
    assert len(Intervals((n * 10, n * 10 + 10) for n in range(1000))) == 1


@pytest.mark.parametrize("text", ["x", "1", "1+", "+1", "1+2,", "5+-3", "-1+2", "0+5,-3+2", "1+2;3+4"])
def test_text_that_is_no_code_is_refused(text):
    with pytest.raises(ValueError):
        Intervals.decode(text)


@pytest.mark.parametrize(("start", "stop"), [(5, 4), (-1, 3)])
def test_what_is_no_range_is_refused(start, stop):
    with pytest.raises(ValueError, match="not a range"):
        Intervals().add(start, stop)


def test_a_set_that_grows_cannot_be_a_key():
    with pytest.raises(TypeError):
        hash(Intervals())
