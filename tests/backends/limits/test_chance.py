"""Verdicts on trials, by the refusals of each instant."""

import random

import pytest

from llmdo.backends.limits.chance import BEHIND, BURST_CALLS, BY_CHANCE, MEMORY_CALLS, TRIAL_CALLS, Chance, Trial


def verdict_of(instants, chance=None):
    """Of a trial whose calls are refused ("n") or admitted ("y"), one text for each instant."""
    trial, chance, number, now = Trial(100, BURST_CALLS), chance or Chance(), 100, 0.0
    for instant in instants:
        now += 1.0
        for letter in instant:
            number += 1
            trial.started(now)
            if letter == "n":
                trial.refused(number, now, now + 0.01)
    return trial.verdict(chance, now + 1.0), chance


@pytest.mark.parametrize("instants", [["yyynn"] * 2, ["nnnnn"], ["nnnnn"] * 10, ["ynnnn"], ["yyyyn"] * 4])
def test_calls_that_are_all_refused_behind_the_last_admitted_one_met_a_limit(instants):
    explained, chance = verdict_of(instants)
    assert explained is False
    assert chance.part == 0.0


@pytest.mark.parametrize("instants", [["nyyyy"] * BY_CHANCE, ["ynyny"] * 3, ["yynyy", "nyyyy"] * 3])
def test_a_refusal_before_an_admitted_call_came_by_chance(instants):
    explained, chance = verdict_of(instants)
    assert explained is True
    assert 0.2 < chance.part < 0.7


@pytest.mark.parametrize("instants", [[], ["yyyyy"] * 50, ["nyyyy"] * (BY_CHANCE - 1), ["yyyyn"] * (BEHIND - 1)])
def test_few_refusals_say_nothing_yet(instants):
    assert verdict_of(instants)[0] is None


def test_calls_that_started_alone_say_nothing():
    assert verdict_of(["n", "y"] * 20)[0] is None


def test_where_both_kinds_are_refused_the_limit_is_what_matters_and_the_part_by_chance_is_known():
    explained, chance = verdict_of(["nyynn", "yyynn", "yynnn"] * 3)
    assert explained is False
    assert 0.1 < chance.part < 0.4


def test_refusals_that_have_become_rare_end_a_trial():
    assert verdict_of(["yyyyy"] * (TRIAL_CALLS // BURST_CALLS))[0] is True


@pytest.mark.parametrize("part", [0.05, 0.2, 0.4])
def test_the_part_is_measured_without_a_bias(part):
    parts, wrong = [], 0
    for seed in range(200):
        chance, letters = Chance(), random.Random(seed)
        instants = []
        while (found := verdict_of(instants, Chance())[0]) is None:
            instants.append("".join("n" if letters.random() < part else "y" for _ in range(BURST_CALLS)))
        chance = verdict_of(instants)[1]
        wrong += not found
        parts.append(chance.refused / chance.calls if chance.calls else 0.0)
    assert wrong <= 20
    assert sum(parts) / len(parts) == pytest.approx(part, rel=0.35)


def test_what_earlier_trials_found_fades():
    chance = Chance()
    chance.add(400, 1000)
    for _ in range(20):
        chance.add(0, MEMORY_CALLS)
    assert chance.part < 0.01
