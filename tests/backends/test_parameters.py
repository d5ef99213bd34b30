import pytest

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.limits.sizes import checked_token_limit
from llmdo.backends.parameters import Dialect, translate

DIALECT = Dialect(unknown=frozenset({"lora"}), renamed={"seed": "random_seed"}, bounds={"temperature": (0, 2)})


@pytest.mark.parametrize(
    ("given", "sent", "warned"),
    [
        ({}, {}, []),
        ({"seed": 0, "other": [1]}, {"random_seed": 0, "other": [1]}, []),
        ({"temperature": 2}, {"temperature": 2}, []),
        ({"temperature": -1}, {"temperature": 0}, ["temperature was changed from -1 to 0: m takes no other"]),
        ({"temperature": "hot"}, {"temperature": "hot"}, []),
        ({"lora": "x"}, {}, ["lora was left out: m cannot use it"]),
        ({"lora": None, "seed": None}, {}, []),
        ({"lora": False}, {}, []),
        ({"n": 1}, {}, []),
        ({"n": 2}, {}, ["n was left out: a request has one answer"]),
        ({"stream": False, "max_tokens": 4, "messages": []}, {}, []),
        (
            {"model": "x", "stream": True},
            {},
            [f"{name} was left out: it is not a parameter of a request" for name in ("model", "stream")],
        ),
        (
            {"max_tokens": 50, "max_completion_tokens": 2},
            {},
            ["max_tokens was left out: the answer has at most 2 tokens by the other limit"],
        ),
        ({"max_tokens": 2, "max_completion_tokens": 2}, {}, []),
    ],
)
def test_a_parameter_is_sent_or_a_sentence_says_why_not(given, sent, warned):
    assert translate(given, DIALECT, "m") == (sent, tuple(warned))


@pytest.mark.parametrize(("n", "sent"), [(1, {}), (3, {"n": 3}), (2.0, {"n": 2}), (None, {}), ("many", {"n": "many"})])
def test_several_answers_are_asked_for_where_a_service_can_give_them(n, sent):
    assert translate({"n": n}, Dialect(several=True), "m") == (sent, ())


def test_a_service_with_a_list_of_its_own_takes_nothing_else():
    assert translate({"seed": 1, "top_k": 0}, Dialect(known=frozenset({"seed"})), "m") == (
        {"seed": 1},
        ("top_k was left out: m cannot use it",),
    )


@pytest.mark.parametrize(
    "given", [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": None, "max_completion_tokens": 5}]
)
def test_the_limit_has_two_names(given):
    assert checked_token_limit(given) == 5


def test_of_two_limits_the_lower_one_holds():
    assert checked_token_limit({"max_tokens": 50, "max_completion_tokens": 2}) == 2
    with pytest.raises(InvalidRequest, match="max_completion_tokens is 0"):
        checked_token_limit({"max_tokens": 5, "max_completion_tokens": 0})
    assert checked_token_limit({}) is None


@pytest.mark.parametrize("limit", [0, -2, 1.5, "5", True, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(InvalidRequest, match="max_tokens"):
        checked_token_limit({"max_tokens": limit})
