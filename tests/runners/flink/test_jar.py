from __future__ import annotations

import contextlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions

from llmdo.runners.flink import jar as flink_jar
from llmdo.runners.flink import loopback_agent
from llmdo.runners.flink.jar import (
    FLINK_VERSIONS,
    FlinkError,
    cached_jar,
    content_of,
    find_jar,
    flink_version_of,
    java,
)
from llmdo.settings.tools import ToolError, print_path

DRIVER = "org/apache/beam/runners/flink/FlinkJobServerDriver.class"
PROPERTIES = "org/apache/beam/sdk/sdk.properties"
FLINK_PROPERTIES = ".flink-runtime.version.properties"


def fake_jar(path: Path, version: str = "2.70.0", driver: str = DRIVER, flink: str = "1.19.0") -> Path:
    """What distinguishes a job server of these versions of Beam and Flink, and nothing that runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as content:
        content.writestr(driver, b"")
        content.writestr(PROPERTIES, f"# SDK source version\n\nversion={version}\nsdk_version={version}\n")
        content.writestr(FLINK_PROPERTIES, f"# Licensed\n\nproject.version={flink}\nscala.binary.version=2.12\n")
    return path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
    path.chmod(0o755)
    return path


def fake_java(path: Path, version: str = "17.0.15") -> Path:
    return script(path, f"""echo 'openjdk version "{version}" 2025-04-15' >&2""")


def fake_maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mvn package`` that takes a moment, counts its calls, and wants the pom."""
    jar = fake_jar(tmp_path / "made.jar")
    monkeypatch.setattr(flink_jar, "_CONTENT", content_of(jar))
    script(
        tmp_path / "bin" / "mvn",
        f"grep -q beam-runners-flink-1.19 pom.xml || exit 9\n"
        f'echo "$*" >> {tmp_path}/calls\nsleep 0.2\nmkdir target\ncp {jar} target/job-server.jar',
    )


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Java and nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv(flink_jar.JAR_VARIABLE, raising=False)
    fake_java(tmp_path / "bin" / "java")


def test_the_option_comes_before_the_environment_and_this_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named = fake_jar(tmp_path / "given.jar"), fake_jar(tmp_path / "named.jar")
    own = fake_jar(cached_jar())
    assert find_jar(None) == own
    monkeypatch.setenv("LLMDO_FLINK_JAR", str(named))
    assert find_jar(None) == named
    assert find_jar(str(given)) == given


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.write_bytes(b"no archive"), "is not a job server for Flink"),
        (lambda path: fake_jar(path, driver="another/Main.class"), "is not a job server for Flink"),
        (lambda path: fake_jar(path, version="${version}"), "does not have its Beam version"),
        (lambda path: fake_jar(path, flink="${version}"), "does not have its Flink version"),
        (
            lambda path: fake_jar(path, flink="1.18.1"),
            "is a job server for Flink 1.18, and llmdo runs on Flink 1.19, 1.20, 2.0, 2.1 and 2.2",
        ),
        (lambda path: fake_jar(path, flink="2.3.0"), "is a job server for Flink 2.3, and llmdo runs on Flink 1.19,"),
    ],
)
def test_a_jar_that_is_given_and_wrong_is_an_error_even_if_there_is_another(tmp_path, make, said) -> None:
    fake_jar(cached_jar())
    make(tmp_path / "given.jar")
    with pytest.raises(FlinkError, match=f"--flink-job-server-jar: .*{said}.*; give the path of a Beam job server"):
        find_jar(str(tmp_path / "given.jar"))


@pytest.mark.parametrize("flink", FLINK_VERSIONS)
def test_a_jar_that_is_given_may_be_for_each_flink_that_beam_has_a_runner_for(tmp_path: Path, flink: str) -> None:
    given = fake_jar(tmp_path / "given.jar", "2.77.0", flink=f"{flink}.1")
    assert find_jar(str(given), flink) == given
    assert flink_version_of(given) == flink


def test_versions_that_are_accepted_are_those_that_beam_publishes_job_servers_for_and_one_is_tested() -> None:
    assert [*FLINK_VERSIONS] == FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    assert [flink for flink, tested in FLINK_VERSIONS.items() if tested] == [flink_jar.FLINK_VERSION]


def test_none_is_built_for_a_flink_other_than_the_tested_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_maven(tmp_path, monkeypatch)
    fake_jar(cached_jar())
    with pytest.raises(FlinkError) as raised:
        find_jar(None, "2.1")
    assert str(raised.value) == (
        "there is no job server for Flink 2.1: get beam-runners-flink-2.1-job-server from Maven Central, and name it "
        "with --flink-job-server-jar or LLMDO_FLINK_JAR; llmdo builds one for Flink 1.19 only"
    )
    assert not (tmp_path / "calls").exists()


def test_maven_builds_it_once_and_nothing_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_maven(tmp_path, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(find_jar, [None] * 3))
    assert found == {cached_jar()}
    assert (tmp_path / "calls").read_text() == "--quiet --batch-mode --strict-checksums package\n"
    assert sorted(path.name for path in cached_jar().parent.iterdir()) == ["job-server.jar", "lock"]
    shown = capfd.readouterr()
    assert "building Beam's job server for Flink 1.19" in shown.err
    assert shown.out == ""


def test_another_pom_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_maven(tmp_path, monkeypatch)
    first = find_jar(None)
    other = tmp_path / "other.xml"
    other.write_text(flink_jar._POM.read_text() + "<!-- newer -->")
    monkeypatch.setattr(flink_jar, "_POM", other)
    assert find_jar(None) != first
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "body"),
    [(PROPERTIES, b"version=2.70.0"), ("another/Main.class", b""), ("META-INF/services/org.slf4j.Logger", b"another")],
)
def test_what_maven_builds_is_used_only_with_the_content_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes
) -> None:
    fake_maven(tmp_path, monkeypatch)
    again = pytest.warns(UserWarning) if name == PROPERTIES else contextlib.nullcontext()  # a second one of its name
    with again, zipfile.ZipFile(tmp_path / "made.jar", "a") as jar:
        jar.writestr(name, body)
    built = content_of(tmp_path / "made.jar")
    with pytest.raises(FlinkError, match=f"Maven: what .*/mvn built is not what it should be: its content is {built}"):
        find_jar(None)
    assert [path.name for path in cached_jar().parent.iterdir()] == ["lock"]


def test_when_and_by_whom_a_jar_was_built_is_not_its_content(tmp_path: Path) -> None:
    one, other = fake_jar(tmp_path / "one.jar"), fake_jar(tmp_path / "other.jar")
    with zipfile.ZipFile(other, "a") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Created-By: Maven JAR Plugin 3.4.1")
        jar.writestr("META-INF/maven/llmdo/flink-job-server/pom.properties", "#Sun Nov 29 21:29:12 UTC 2026")
    assert content_of(one) == content_of(other)


@pytest.mark.flink
def test_the_jar_that_is_built_here_has_the_content_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real cache, where the real Maven has put it
    monkeypatch.delenv(flink_jar.JAR_VARIABLE, raising=False)
    assert content_of(find_jar(None)) == flink_jar._CONTENT


def test_when_all_fails_each_way_is_named_with_its_reason_and_the_remedy(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "mvn", "echo '[ERROR] Could not resolve dependencies'\nexit 1")
    with pytest.raises(FlinkError) as raised:
        find_jar(None)
    starts = (
        "Beam's job server for Flink 1.19 is not on this machine and could not be obtained:",
        f"  cache: there is no {cached_jar()}",
        "  Maven: mvn failed: [ERROR] Could not resolve dependencies",
        "Install Maven and Java 11 or 17 (apt-get install maven), or give a jar that you trust, such as Beam's beam-",
    )
    shown = str(raised.value).splitlines()
    assert len(shown) == len(starts)
    for line, start in zip(shown, starts, strict=True):
        assert line.startswith(start)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ToolError, match=r"nothing can be kept at .*; set XDG_CACHE_HOME"):
        find_jar(None)


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("11.0.2", None),
        ("17", None),
        ("21-ea", None),
        ("1.8.0_392", "is Java 8; Flink needs Java 11 or 17"),
        ("9", "is Java 9; Flink needs"),
    ],
)
def test_a_java_that_is_too_old_is_refused(tmp_path: Path, version: str, problem: str | None) -> None:
    fake_java(tmp_path / "bin" / "java", version)
    if problem is None:
        assert java() == tmp_path / "bin" / "java"
    else:
        with pytest.raises(FlinkError, match=problem):
            java()


def test_java_home_comes_before_path_and_a_missing_java_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fake_java(tmp_path / "home" / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert java() == other
    other.unlink()
    with pytest.raises(FlinkError, match=r"there is no java in JAVA_HOME=.*/home; .* apt-get install openjdk-17-jre"):
        java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(FlinkError, match="there is no java on PATH; Flink needs Java 11"):
        java()


def test_a_java_that_says_nothing_is_refused(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "java", "echo 'no runtime present'")
    with pytest.raises(FlinkError, match=r"-version prints no version \(no runtime present\); Flink needs"):
        java()


def test_the_pom_is_of_one_flink_and_gives_the_jar_its_name() -> None:
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    pom = ElementTree.parse(flink_jar._POM).getroot()
    artifacts = [node.text for node in pom.findall("m:dependencies/m:dependency/m:artifactId", space)]
    assert f"beam-runners-flink-{flink_jar.FLINK_VERSION}" in artifacts
    assert pom.findtext("m:build/m:finalName", namespaces=space) == "job-server"


def test_the_command_prints_the_path_and_nothing_else_and_has_the_agent_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = fake_jar(cached_jar())
    found: list[Path] = []
    monkeypatch.setattr(loopback_agent, "find_agent", found.append)
    assert print_path(flink_jar.find_all) == 0
    assert capsys.readouterr().out == f"{own}\n"
    assert found == [own]


def test_the_command_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLMDO_FLINK_JAR", "/nowhere/job-server.jar")
    assert print_path(flink_jar.find_all) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "LLMDO_FLINK_JAR: there is no /nowhere/job-server.jar; give the path of a Beam job server, or omit it\n"
    )
