from dataclasses import replace

import pytest

from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import InvalidRequest, ModelRetired, Overloaded, QuotaExhausted
from llmdo.backends.responses import EmbedResponse
from llmdo.backends.usage import Usage
from llmdo.transforms.answers.texts import LineTexts

REFUSED = InvalidRequest("an empty text", code=5006)


def vector(number, attempts=1, warnings=(), neurons=None):
    return Done(
        EmbedResponse(((float(number),),), Usage(2, neurons=neurons), "bge", warnings=warnings), None, attempts, 0.1
    )


def failed(error, attempts=1):
    return Done(None, error, attempts, 0.2)


def gathered(*ended, order=None):
    gathering = LineTexts(len(ended))
    found = [gathering.add(index, ended[index]) for index in order or range(len(ended))]
    assert found[:-1] == [None] * (len(ended) - 1)
    return found[-1]


def test_results_are_put_together_in_the_order_of_the_texts():
    found = gathered(vector(0, neurons=0.5), vector(1, 3, ("old",)), vector(2, 1, ("old",), 1.0), order=(2, 0, 1))
    response = found.done.response
    assert response.vectors == ((0.0,), (1.0,), (2.0,))
    assert (response.usage, response.warnings) == (Usage(6, neurons=1.5), ("old",))
    assert (found.done.attempts, len(found.parts), found.errors) == (3, 3, {})


def test_a_line_has_the_usage_of_the_texts_that_it_paid_for():
    def shared(number):
        done = vector(number)
        return replace(done, response=replace(done.response, shared=True))

    some, all_of_them = gathered(shared(0), vector(1), shared(2)).done.response, gathered(shared(0), shared(1))
    assert (some.shared, some.usage, len(some.vectors)) == (False, Usage(2), 3)
    assert (all_of_them.done.response.shared, all_of_them.done.response.usage) == (True, Usage(4))
    assert [part.shared for part in all_of_them.parts] == [True, True]


def test_a_text_that_is_refused_leaves_the_others_their_vectors_and_a_warning_names_it():
    found = gathered(vector(0), failed(REFUSED, 2), vector(2))
    assert found.done.response.vectors == ((0.0,), (), (2.0,))
    assert found.errors == {1: REFUSED}
    assert found.done.response.warnings == ("1 of 3 texts has no vector: the one with index 1",)
    assert (found.done.attempts, found.done.latency_s) == (2, 0.2)
    two = gathered(failed(REFUSED), vector(1), failed(REFUSED))
    assert two.done.response.warnings == ("2 of 3 texts have no vector: those with index 0, 2",)


def test_a_line_of_refused_texts_fails_with_the_first_reason():
    assert gathered(failed(REFUSED), failed(InvalidRequest("other"))).done.error is REFUSED


@pytest.mark.parametrize("error", [Overloaded("busy"), ModelRetired("gone"), QuotaExhausted("used up")])
def test_an_error_that_is_not_the_texts_own_ends_the_line(error):
    found = gathered(vector(0), failed(REFUSED), failed(error))
    assert (found.done.response, found.done.error) == (None, error)


def test_what_stops_the_run_goes_before_what_may_be_tried_again():
    stop = QuotaExhausted("used up")
    assert gathered(failed(Overloaded("busy")), failed(stop)).done.error is stop
