import pytest
from apache_beam.runners.worker import statecache
from objsize import traverse

from llmdo.storage.output.costs import Cost
from llmdo.transforms.elements import Answer, FileVersion
from llmdo.transforms.state_cache import measure_state_cheaply
from tests.faults.recorder import World

FILE = FileVersion("r2://llmdo", "input/a.jsonl", "e1", 100)


def beams_own(*objects):
    return statecache.objsize.get_deep_size(
        *objects,
        get_size_func=statecache._size_func,
        get_referents_func=statecache._get_referents_func,
        filter_func=statecache._filter_func,
    )


@pytest.fixture
def looked(monkeypatch):
    """How often objsize went through all loaded modules."""
    times = []
    through_modules = traverse._iter_modules_globals
    monkeypatch.setattr(traverse, "_iter_modules_globals", lambda: times.append(1) or through_modules())
    monkeypatch.setattr(statecache, "get_deep_size", beams_own)  # another test's run may have replaced it
    measure_state_cheaply.cache_clear()
    yield times
    measure_state_cheaply.cache_clear()


@pytest.mark.parametrize(
    "value",
    [b"x" * 1000, [], [(1, 0, 0, 99, 100)], [Answer(FILE, 0, 10, b"{}" * 50, 3, 2, Cost(0.1, 0, None))] * 3, iter([1])],
)
def test_state_is_measured_as_beam_measures_it_without_a_look_at_any_module(looked, value):
    theirs = statecache.get_deep_size(value)
    assert looked
    looked.clear()
    measure_state_cheaply()
    assert statecache.get_deep_size(value) == theirs > 0
    assert looked == []


def test_a_run_never_goes_through_all_modules_to_measure_its_state(looked, tmp_path, monkeypatch):
    world = World(tmp_path)
    world.install(monkeypatch)
    for number in range(3):
        world.upload(f"{number}.jsonl", b'{"prompt": "x%d"}\n' % number)
    assert len(world.run().settled) == 3
    assert looked == []
