import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.answer.schedule import next_run, run_arguments, run_line
from llmdo.runners.cli.main import main
from llmdo.runners.running import schedule as scheduling
from llmdo.runners.running.cron import Cron
from llmdo.runners.running.process import RunEnd
from llmdo.runners.running.schedule import Schedule, Stopping, Surroundings
from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.runs import Presence
from llmdo.storage.runs.schedules import ClaimHeld, Schedules

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MODEL = "local/smollm2-135m-instruct"


class World:
    """A fake clock, and runs that last as long as ``lasting`` says, in seconds; it stops the schedule at ``stop``."""

    def __init__(self, output, stop, lasting=10.0, codes=(), begin=NOON):
        self.output = output
        self.now = begin
        self.stop = stop
        self.lasting = lasting
        self.codes = list(codes)
        self.started = []
        self.told = []
        self.waits = []
        self.said = []
        self.stopping = Stopping()
        self.on_start = lambda: None
        self.at = {}  # moment → what happens then, once

    def clock(self):
        return self.now

    def nap(self, seconds):
        self.now += timedelta(seconds=seconds)
        for moment in [m for m in self.at if m <= self.now]:
            self.at.pop(moment)()
        if self.now >= self.stop:
            self.stopping.asked = True

    def set(self, moment):
        """Puts the clock there; forward: the machine was asleep until then."""
        self.now = moment

    def start(self):
        self.started.append(self.now)
        self.on_start()
        return Run(self)

    def schedule(self, cron="*/15 * * * *", zone="UTC", source="in/"):
        options = JsonlOptions(files=(source,), output=str(self.output), model=MODEL)
        surroundings = Surroundings(self.start, self.waits.append, self.said.append, self.clock, self.nap)
        return Schedule(options, Cron(cron, zone), "llmdo schedule …", surroundings, self.stopping).run()

    def book(self):
        return Schedules(open_store(str(self.output)), "", "*/15 * * * * UTC in/")

    def times(self):
        return [moment.strftime("%H:%M") for moment in self.started]

    def ticks(self):
        return [said["tick"][11:16] for said in self.said]


class Run:
    """Takes its time by the fake clock; asked to stop, it ends 2 s later with exit code 1, as a drained run does."""

    def __init__(self, world):
        self.world = world
        self.until = world.now + timedelta(seconds=world.lasting)
        self.stopped = False

    def stop(self):
        self.world.told.append(self.world.now)
        self.until = self.world.now + timedelta(seconds=2)
        self.stopped = True

    def result(self, seconds):
        if self.world.now < self.until:
            self.world.nap(min(seconds, (self.until - self.world.now).total_seconds()))
            return None
        if self.stopped:
            return RunEnd(1, {"problem": "stopped by SIGTERM"})
        return RunEnd(self.world.codes.pop(0) if self.world.codes else 0, {"answered": 3})


def clock(text, day=21):
    hours, minutes = map(int, text.split(":"))
    return NOON.replace(day=day, hour=hours, minute=minutes)


def summaries(folder):
    return {p.stem: json.loads(p.read_text()) for p in sorted((Path(folder) / "_runs").glob("2*Z.json"))}


def test_it_runs_at_each_tick_and_says_when_the_next_one_is(tmp_path):
    world = World(tmp_path, stop=clock("13:01"))
    assert world.schedule() == 0
    assert world.times() == world.ticks() == ["12:15", "12:30", "12:45", "13:00"]
    assert world.waits == [clock(t) for t in ("12:15", "12:30", "12:45", "13:00", "13:15")]
    assert list(summaries(tmp_path)) == [f"2026-11-21T{t}-00Z" for t in ("12-15", "12-30", "12-45", "13-00")]
    assert (
        summaries(tmp_path)["2026-11-21T12-15-00Z"]
        == world.said[0]
        == {
            "tick": "2026-11-21T12:15:00Z",
            "started": "2026-11-21T12:15:00.000Z",
            "ended": "2026-11-21T12:15:10.000Z",
            "schedule": "*/15 * * * * UTC",
            "command": "llmdo schedule …",
            "answered": 3,
            "exit_code": 0,
        }
    )


def test_ticks_that_pass_while_a_run_goes_on_are_made_up_by_one_run(tmp_path):
    world = World(tmp_path, stop=clock("14:01"), lasting=40 * 60)
    world.schedule()
    assert world.times()[:2] == ["12:15", "12:55"]
    assert world.ticks()[:2] == ["12:15", "12:45"]


def test_ticks_that_pass_while_the_machine_sleeps_are_made_up_by_one_run(tmp_path):
    world = World(tmp_path, stop=clock("16:01"))
    world.at[clock("12:20")] = lambda: world.set(clock("15:50"))
    world.schedule()
    assert world.times() == ["12:15", "15:50", "16:00"]
    assert world.ticks() == ["12:15", "15:45", "16:00"]


def test_ticks_that_pass_while_no_process_is_there_are_made_up_by_one_run(tmp_path):
    World(tmp_path, stop=clock("12:16")).schedule()
    world = World(tmp_path, begin=clock("14:20"), stop=clock("14:31"))
    world.schedule()
    assert world.times() == ["14:20", "14:30"]
    assert world.ticks() == ["14:15", "14:30"]


def test_a_schedule_that_is_new_makes_nothing_up(tmp_path):
    World(tmp_path, stop=clock("12:16")).schedule()
    for given in ({"source": "other/"}, {"cron": "0 13 * * *"}, {"zone": "Europe/Berlin"}):
        world = World(tmp_path, begin=clock("14:20"), stop=clock("14:21"))
        world.schedule(**given)
        assert world.times() == []


@pytest.mark.parametrize(
    ("day", "expected"),
    [(datetime(2026, 3, 29, tzinfo=UTC), ["01:00"]), (datetime(2026, 10, 25, tzinfo=UTC), ["00:30"])],
)
def test_where_clocks_are_put_forward_or_back_a_tick_is_run_for_once(tmp_path, day, expected):
    world = World(tmp_path, begin=day, stop=day + timedelta(hours=6))
    world.schedule(cron="30 2 * * *", zone="Europe/Berlin")
    assert world.times() == expected


def test_a_start_in_the_hour_that_is_there_twice_makes_up_its_tick_of_the_first_time(tmp_path):
    day = datetime(2026, 10, 25, tzinfo=UTC)
    World(tmp_path, begin=day, stop=day + timedelta(minutes=1)).schedule(cron="30 2 * * *", zone="Europe/Berlin")
    begin = day + timedelta(minutes=70)  # 02:10, for the second time
    world = World(tmp_path, begin=begin, stop=begin + timedelta(hours=5))
    world.schedule(cron="30 2 * * *", zone="Europe/Berlin")
    assert world.times() == ["01:10"]
    assert world.ticks() == ["00:30"]


def other_claims(world, tick, run_id="other-host-1"):
    """Another schedule that lives; its claim is released by what is returned."""
    presence = Presence(open_store(str(world.output)), "", run_id)
    held = world.book().take(presence, clock(tick), NOON, clock(tick))
    assert isinstance(held, ClaimHeld)

    def release(done=True):
        world.book().release(held, done=done)
        presence.stop()

    return presence, release


def test_a_tick_is_skipped_and_that_is_said_while_another_one_is_at_work_and_then_made_up(tmp_path, caplog):
    world = World(tmp_path, stop=clock("12:46"))
    _, release = other_claims(world, "12:00")
    world.at[clock("12:40")] = release
    world.schedule()
    assert world.times() == ["12:40", "12:45"]
    assert world.ticks() == ["12:30", "12:45"]
    assert caplog.text.count("no run for the tick of 2026-11-21T12:15:00Z: other-host-1 is still running") == 1
    found = summaries(tmp_path)
    assert "on the tick of 2026-11-21T12:00:00Z" in found["2026-11-21T12-15-00Z"]["skipped"]
    assert found["2026-11-21T12-30-00Z"]["exit_code"] == 0


def test_a_tick_that_another_one_runs_for_is_not_skipped_and_not_run_again(tmp_path, caplog):
    world = World(tmp_path, stop=clock("12:29"))
    _, release = other_claims(world, "12:15")
    world.at[clock("12:20")] = release
    world.schedule()
    assert world.times() == []
    assert summaries(tmp_path) == {}
    assert "no run for" not in caplog.text


def test_what_a_dead_process_was_at_work_on_is_gone_on_with(tmp_path):
    world = World(tmp_path, stop=clock("12:29"))
    presence, _ = other_claims(world, "12:15")
    world.at[clock("12:20")] = presence.stop  # as if it had died: no heartbeat, and its claim stays
    world.schedule()
    assert world.times() == ["12:20"]
    assert world.ticks() == ["12:15"]


@pytest.mark.parametrize(("code", "ours"), [(0, 0), (3, 3), (1, 1), (2, 1), (137, 1)])
def test_a_run_that_fails_does_not_end_the_schedule_and_the_last_one_decides_its_exit_code(tmp_path, code, ours):
    world = World(tmp_path, stop=clock("12:46"), codes=[1, 2, code])
    assert world.schedule() == ours
    assert world.ticks() == ["12:15", "12:30", "12:45"]
    assert [said["exit_code"] for said in world.said] == [1, 2, code]


def test_when_it_is_stopped_the_run_in_work_is_drained_and_the_next_start_goes_on_at_once(tmp_path):
    world = World(tmp_path, stop=clock("12:16"), lasting=600)
    assert world.schedule() == 1
    assert len(world.told) == 1
    assert [said["problem"] for said in world.said] == ["stopped by SIGTERM"]
    again = World(tmp_path, begin=clock("12:17"), stop=clock("12:29"))
    assert again.schedule() == 0
    assert again.times() == ["12:17"]
    assert summaries(tmp_path)["2026-11-21T12-15-00Z"]["exit_code"] == 0


def test_a_run_that_ends_by_itself_just_when_it_is_stopped_counts(tmp_path):
    class Ready(Run):
        def stop(self):
            self.world.told.append(self.world.now)
            self.until = self.world.now

    world = World(tmp_path, stop=clock("12:16"), lasting=600)
    world.start = lambda: Ready(world)
    assert world.schedule() == 0
    assert len(world.told) == 1
    again = World(tmp_path, begin=clock("12:17"), stop=clock("12:29"))
    again.schedule()
    assert again.times() == []


def test_a_run_whose_schedule_was_not_heard_for_too_long_is_drained_and_its_tick_made_up(tmp_path, monkeypatch):
    world = World(tmp_path, stop=clock("12:29"), lasting=60)
    asleep = iter([False] * 10 + [True])
    monkeypatch.setattr(Presence, "asleep", property(lambda self: next(asleep, False)))
    world.schedule()
    assert len(world.told) == 1
    assert world.ticks() == ["12:15", "12:15"]


def test_a_store_that_is_away_at_a_tick_delays_the_run(tmp_path, monkeypatch, caplog):
    world = World(tmp_path, stop=clock("12:29"))
    take = Schedules.take

    def away(*given):
        if world.now < clock("12:18"):
            raise StorageUnavailable("R2 is away")
        return take(*given)

    monkeypatch.setattr(Schedules, "take", away)
    assert world.schedule() == 0
    assert world.times() == ["12:18"]
    assert "no run for the tick of 2026-11-21T12:15:00Z yet: R2 is away" in caplog.text


def test_a_process_that_cannot_be_started_delays_the_run(tmp_path):
    world = World(tmp_path, stop=clock("12:29"))

    def full():
        if world.now < clock("12:17"):
            raise BlockingIOError("no more processes")

    world.on_start = full
    assert world.schedule() == 0
    assert world.ticks() == ["12:15"]


def test_a_summary_that_cannot_be_written_does_not_repeat_the_run(tmp_path, monkeypatch, caplog):
    world = World(tmp_path, stop=clock("12:31"))

    def away(*_):
        raise StorageUnavailable("R2 is away")

    monkeypatch.setattr(Schedules, "write", away)
    world.schedule()
    assert world.ticks() == ["12:15", "12:30"]
    assert "does not say how the run for the tick of 2026-11-21T12:15:00Z ended: R2 is away" in caplog.text


def test_a_clock_that_is_put_back_repeats_no_tick(tmp_path):
    world = World(tmp_path, stop=clock("12:46"))
    world.on_start = lambda: world.set(clock("12:05")) if world.now == clock("12:30") else None
    world.schedule()
    assert world.waits == [clock(t) for t in ("12:15", "12:30", "12:45", "13:00")]
    assert world.ticks() == ["12:15", "12:30", "12:45"]


def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    def away(*_):
        raise StorageUnavailable("R2 is away")

    monkeypatch.setattr(LocalStore, "put_if_absent", away)
    with pytest.raises(StorageUnavailable):
        World(tmp_path, stop=clock("12:29")).schedule()


def test_the_first_signal_ends_the_schedule_and_the_second_one_leaves_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(scheduling, "leave", codes.append)
    before, stopping = signal.getsignal(signal.SIGTERM), Stopping()
    with stopping.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked
        assert codes == []
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [128 + signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_in_the_summaries_shows_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "s3cr3t-s3cr3t")
    found = []

    def begin(options, cron, command, *_):
        found.append(command)
        raise UsageError(["enough"])

    monkeypatch.setattr(scheduling, "Schedule", begin)
    options = JsonlOptions(files=("in/",), output=str(tmp_path), model=MODEL)
    with pytest.raises(UsageError):
        scheduling.schedule(options, Cron("* * * * *", "UTC"), "llmdo --ledger r2://s3cr3t-s3cr3t@x", [], print, print)
    assert found == ["llmdo --ledger r2://<R2_SECRET_ACCESS_KEY>@x"]


@pytest.fixture
def given(monkeypatch):
    """What the command would begin with."""
    found = []

    def start(options, cron, command, run, waits, ended, *_):
        found.append((options, cron, run))
        waits(datetime.now(UTC) + timedelta(minutes=14))
        ended({"tick": "T", "started": "2026-11-21T14:15:00Z", "ended": "2026-11-21T14:15:42Z", "exit_code": 3})
        return 3

    monkeypatch.setattr("llmdo.runners.running.schedule.schedule", start)
    return found


def test_the_command_takes_the_options_of_a_run(given, tmp_path, capsys):
    (tmp_path / "system.txt").write_text("Be brief.")
    with pytest.raises(SystemExit) as left:
        main(
            [
                *(
                    "schedule",
                    "--cron",
                    "*/15 * * * *",
                    "--timezone",
                    "Europe/Berlin",
                    "in/",
                    "--output",
                    str(tmp_path),
                ),
                *("--model", MODEL, "--system", f"@{tmp_path}/system.txt"),
                *("--max-cost", "2", "--concurrency", "fixed:4", "--patience", "7"),
            ]
        )
    assert left.value.code == 3
    ((options, cron, _),) = given
    assert (options.files, options.model, options.system, options.max_cost) == (("in/",), MODEL, "Be brief.", 2.0)
    assert (str(options.concurrency), options.patience_s) == ("fixed:4", 7.0)
    assert (cron.expression, cron.timezone) == ("*/15 * * * *", "Europe/Berlin")
    said = capsys.readouterr()
    assert "The next run is at" in said.err
    assert said.out == "T: 42 s, exit code 3\n"


def test_a_run_is_started_by_the_schedules_own_arguments_without_what_says_when():
    rest = ["in/", "--output", "out/", "--prompt", "--cron is {a}", "--samples=2"]
    for when in (
        ["--cron", "* * * * *", "--timezone", "UTC"],
        ["--cron=* * * * *", "--timezone=UTC", "--json", "--metrics-port", "0", "--metrics-host=::"],
    ):
        assert run_arguments(["schedule", *when, *rest]) == ["run", "--json", *rest]
        assert run_arguments(["schedule", *rest, *when]) == ["run", "--json", *rest]
    files = ["--output", "out/", "--", "--cron", "--json"]
    assert run_arguments(["schedule", "--cron", "* * * * *", *files]) == ["run", "--json", *files]


def test_with_json_stdout_has_one_object_a_run_and_stderr_nothing(given, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["schedule", "--cron", "*/15 * * * *", "in/", "--output", str(tmp_path), "--model", MODEL, "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["exit_code"] == 3
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cron", "* * *", "in/"], "--cron '* * *'"),
        (["--cron", "* * * * *", "--timezone", "Mars", "in/"], "--timezone 'Mars'"),
        (["--cron", "* * * * *", "in/", "--batch-size", "0"], "--batch-size"),
        (["--cron", "* * * * *"], "name the prompts"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_tick(given, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.delenv("LLMDO_QUEUE", raising=False)
    with pytest.raises(SystemExit) as left:
        main(["schedule", *arguments, "--output", str(tmp_path), "--model", MODEL])
    assert (left.value.code, given) == (2, [])
    assert says in capsys.readouterr().err


def test_the_next_run_is_said_in_the_schedules_own_time():
    cron = Cron("15 15 * * *", "Europe/Berlin")
    tick = clock("14:15")
    assert next_run(tick, clock("14:01"), cron) == "The next run is at 2026-11-21 15:15:00 CET, in 14 min."
    assert next_run(tick, clock("12:00"), cron).endswith("in 2 h 15 min.")
    assert next_run(tick, tick - timedelta(seconds=7), cron).endswith("in 7 s.")
    assert next_run(tick, clock("14:16"), cron).endswith("in 0 s.")


def test_a_run_is_one_line():
    said = {"tick": "T", "started": "2026-11-21T14:15:00Z", "ended": "2026-11-21T14:35:00Z", "exit_code": 1}
    full = said | {"files": [], "answered": 1234, "failed": 2, "files_done": 3, "problem": "R2 is [away]"}
    assert run_line(full) == "T: 1,234 lines answered, 2 errors, 3 files done, 1,200 s, exit code 1: R2 is [away]"
    assert run_line(said) == "T: 1,200 s, exit code 1"
