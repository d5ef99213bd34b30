import asyncio
import json
import os
import time

import pytest

from llmdo.backends.errors import Overloaded, Unauthorized
from llmdo.backends.listing import FRESH_S, deprecation, kept_models, list_models
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.settings.environment import MissingSettings

MODEL = ModelInfo(
    "openai/m", "Text Generation", "A model", 8192, {"owned_by": "x", "meta": {"a": [1]}}, Price(0.1, 0.3),
    frozenset({"tools", "json"}), "2026-12-31",
)  # fmt: skip
NEWER = ModelInfo("openai/newer")


class Remote:
    """A provider that lists what it is given, or fails; counts how often it was asked."""

    def __init__(self, *outcomes, name="openai"):
        self.name = name
        self.outcomes = list(outcomes)
        self.asked = 0

    async def list_models(self):
        self.asked += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "hush-hush-hush")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://models.example/v1")
    return tmp_path / "cache" / "llmdo"


def listed(remote, now):
    return asyncio.run(list_models(remote, lambda: now))


def test_a_list_is_asked_for_once_an_hour_and_kept_whole():
    remote = Remote([MODEL], [NEWER])
    assert listed(remote, 1000.0) == Models((MODEL,))
    assert listed(remote, 1000.0 + FRESH_S - 1) == Models((MODEL,), FRESH_S - 1)
    assert remote.asked == 1
    assert listed(remote, 1000.0 + FRESH_S) == Models((NEWER,))


def test_when_the_provider_fails_the_old_list_is_given_and_says_so():
    remote = Remote([MODEL], Overloaded("the service failed"), Unauthorized("wrong key"), [NEWER])
    listed(remote, 0.0)
    assert listed(remote, 9000.0) == Models((MODEL,), 9000.0, "the service failed")
    assert listed(remote, 9001.0).problem == "wrong key"
    assert listed(remote, 9002.0) == Models((NEWER,))


def test_without_an_older_list_the_failure_is_said():
    with pytest.raises(Overloaded):
        listed(Remote(Overloaded("down")), 0.0)


def test_each_service_and_account_has_its_own_list(monkeypatch, places):
    listed(Remote([MODEL]), 0.0)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://others.example/v1")
    assert listed(Remote([NEWER]), 0.0) == Models((NEWER,))
    assert len(list(places.iterdir())) == 2
    for path in places.iterdir():
        assert "hush" not in path.name + path.read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"form": 1}', '{"form": 99, "written_at": 0, "models": []}'])
def test_a_cache_that_cannot_be_read_is_no_cache(places, content):
    listed(Remote([MODEL]), 0.0)
    (path,) = places.iterdir()
    path.write_text(content)
    assert listed(Remote([NEWER]), 0.0) == Models((NEWER,))
    assert json.loads(path.read_text())["form"] == 1


@pytest.mark.parametrize("folder", ["a file", "no right"])
def test_a_cache_that_cannot_be_written_stops_nothing(places, folder):
    places.parent.mkdir()
    if folder == "a file":
        places.write_text("x")
    else:
        places.mkdir(mode=0o500)
    remote = Remote([MODEL], [NEWER])
    assert listed(remote, 0.0) == Models((MODEL,))
    expected = MODEL if folder == "no right" and os.access(places, os.W_OK) else NEWER  # root may write anywhere
    assert listed(remote, 0.0).models == (expected,)


def test_a_clock_that_was_put_back_makes_no_list_older_than_it_is():
    remote = Remote([MODEL])
    listed(remote, 5000.0)
    assert listed(remote, 4000.0) == Models((MODEL,), 0.0)


def test_what_is_at_hand_is_not_kept(places):
    assert listed(Remote([MODEL], name="local"), 0.0) == Models((MODEL,))
    assert not places.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://[::1]:8000/v1", "http://LOCALHOST/v1"])
def test_the_list_of_a_server_on_this_machine_is_asked_for_each_time_and_not_kept(monkeypatch, places, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    remote = Remote([MODEL], [NEWER])
    assert [listed(remote, 0.0), listed(remote, 1.0)] == [Models((MODEL,)), Models((NEWER,))]
    assert not places.exists()


def test_a_list_that_nobody_renewed_for_a_month_is_removed_when_another_is_written_and_nothing_else(places):
    day_s = 24 * 3600
    for name, days in [("models-openai-old.json", 31), ("models-x-new.json", 29), ("prism", 400), ("models-x", 400)]:
        places.mkdir(parents=True, exist_ok=True)
        (places / name).write_text("{}")
        at = time.time() - days * day_s
        os.utime(places / name, (at, at))
    listed(Remote([MODEL]), 0.0)
    (written,) = [path.name for path in places.glob("models-openai-*.json")]
    assert {path.name for path in places.iterdir()} == {written, "models-x-new.json", "prism", "models-x"}


def test_settings_that_are_missing_are_named(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(MissingSettings, match="OPENAI_API_KEY"):
        listed(Remote([MODEL]), 0.0)


def test_what_the_cache_holds_is_known_without_asking_however_old():
    assert kept_models("openai") == ()
    listed(Remote([MODEL]), 1000.0)
    assert kept_models("openai") == (MODEL,)


def test_a_deprecated_model_is_warned_of_by_its_date():
    day = 1_798_675_200.0  # 2026-12-31
    assert deprecation(MODEL, day) == "m is deprecated since 2026-12-31: name another model"
    assert deprecation(MODEL, day - 1) == "m will be switched off on 2026-12-31: name another model before"
    assert deprecation(NEWER, day) is deprecation(None, day) is None
