import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.engine.jobs import Job, Reservation, can_split, halves
from llmdo.backends.errors import (
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    LicenceNotAccepted,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    PlanRequired,
    StopRun,
)
from llmdo.backends.limits.arrays import one_each
from llmdo.backends.requests import ChatRequest, EmbedRequest
from llmdo.backends.responses import EmbedResponse
from llmdo.backends.usage import Usage, share


def array(*texts, **more):
    return Job(
        "p", EmbedRequest("m", texts, {"pooling": "cls"}), lambda *_: None, Reservation(len(texts)), apart=True, **more
    )


@given(
    st.builds(
        Usage,
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.none() | st.floats(0, 1e6),
    ),
    st.lists(st.integers(0, 10**5), min_size=1, max_size=100),
)
def test_the_shares_of_an_array_sum_to_its_usage(usage, weights):
    parts = share(usage, weights)
    assert len(parts) == len(weights)
    for name in ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"):
        assert sum(getattr(part, name) for part in parts) == getattr(usage, name)
    if usage.neurons is None:
        assert {part.neurons for part in parts} == {None}
    else:
        assert sum(part.neurons for part in parts) == pytest.approx(usage.neurons)


def test_longer_texts_get_more_and_the_first_gets_what_is_left():
    response = EmbedResponse(((1.0,), (2.0,), (3.0,)), Usage(10, neurons=4.0), "m", "ray")
    parts = one_each(response, ["ab", "abcd", "ab"])
    assert [part.vectors for part in parts] == [((1.0,),), ((2.0,),), ((3.0,),)]
    assert [part.usage for part in parts] == [Usage(3, neurons=1.0), Usage(5, neurons=2.0), Usage(2, neurons=1.0)]
    assert {part.request_id for part in parts} == {"ray"}


def test_halves_keep_their_indexes_and_the_calls_made_before():
    job = array("a", "b", "c", first=4, earlier=1, tries=2)
    left, right = halves(job)
    assert (left.request.texts, left.first) == (("a",), 4)
    assert (right.request.texts, right.first) == (("b", "c"), 5)
    assert left.request.parameters == right.request.parameters == {"pooling": "cls"}
    assert {(half.earlier, half.tries, half.reservation is job.reservation) for half in (left, right)} == {(3, 0, True)}


@pytest.mark.parametrize(
    ("kind", "splits"),
    [
        (InvalidRequest, True),
        (ContextOverflow, True),
        (ContentFiltered, True),
        (ModelNotFound, False),
        (LicenceNotAccepted, False),
        (PlanRequired, False),
        (ModelRetired, False),
        (Overloaded, False),
        (StopRun, False),
    ],
)
def test_an_array_is_split_only_for_what_one_text_can_be_to_blame_for(kind, splits):
    assert can_split(array("a", "b"), kind("no")) is splits
    assert not can_split(array("a"), kind("no"))
    assert not can_split(Job("p", ChatRequest("m", ()), lambda *_: None, Reservation(1)), kind("no"))
    whole = Job("p", EmbedRequest("m", ("a", "b")), lambda *_: None, Reservation(1))
    assert not can_split(whole, kind("no"))
