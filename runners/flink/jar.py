"""Finds the jar of Beam's job server for Flink: given, in the cache, or built with Maven.

``python -m llmdo.runners.flink.jar`` prints its path.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import zipfile
from operator import attrgetter
from pathlib import Path

from llmdo.runners.flink import loopback_agent
from llmdo.settings.environment import cache_folder
from llmdo.settings.tools import ToolError, find_or_make, given_path, print_path, run_tool, say, succeed, workshop

JAR_VARIABLE = "LLMDO_FLINK_JAR"
# The version that a job server is built for here.
FLINK_VERSION = "1.19"
# Versions that are accepted, and whether jobs on them are tested here. They are those that Beam has job servers for:
# PUBLISHED_FLINK_VERSIONS in its pipeline options.
FLINK_VERSIONS = {FLINK_VERSION: True, "1.20": False, "2.0": False, "2.1": False, "2.2": False}
SUPPORTED = f"Flink {', '.join([*FLINK_VERSIONS][:-1])} and {[*FLINK_VERSIONS][-1]}"
# Flink 1 runs on Java 8, too; Flink 2, and Beam's classes of 2.70 and newer, want 11.
JAVA_AT_LEAST = 11
_POM = Path(__file__).with_name("pom.xml")
# In every jar of Beam, whoever built it.
_BEAM_PROPERTIES = "org/apache/beam/sdk/sdk.properties"
# Where Flink itself reads its version (EnvironmentInformation).
_FLINK_PROPERTIES = ".flink-runtime.version.properties"
_DRIVER = "org/apache/beam/runners/flink/FlinkJobServerDriver.class"
# What Maven makes of the pom, see ``content_of``; the same with Maven 3.8 on Java 17 and 3.9 on Java 25.
_CONTENT = "e98fc4b4e881f6e1bd4e1288a4acf3df2f9773dc0ff6aa742b02f045ff262864"
# These contain when, and by which Maven and Java, a jar was made.
_MAKERS_OWN = ("META-INF/MANIFEST.MF", "META-INF/maven/llmdo/")
_JAVA_TIMEOUT = 30.0  # seconds


class FlinkError(ToolError):
    """Flink, or what it needs, is missing or does not work; the message has the remedy."""


def find_jar(location: str | None, flink: str = FLINK_VERSION) -> Path:
    """The path of a job server. The first of these that holds:

    ``location``; LLMDO_FLINK_JAR; for Flink 1.19 only, this program's cache, or built with Maven from what Maven
    Central has (16 s with all parts there, 4 minutes without), and compared with the content that is known. That is
    kept in the cache, and takes one process at a time. Beam's release (300 MB) is not fetched: there is nothing to
    compare it with. Raises FlinkError: at once for a location that is given and wrong, else when nothing helped.

    Args:
        location: of a jar, which may be for any version of FLINK_VERSIONS.
        flink: the version that is needed if no jar is given.
    """
    given = {"--flink-job-server-jar": location, JAR_VARIABLE: os.environ.get(JAR_VARIABLE)}
    if path := given_path(given, checked_jar, "a Beam job server"):
        return path
    if flink != FLINK_VERSION:
        raise FlinkError(f"there is no job server for Flink {flink}: {way_to_jar(flink)}")
    remedy = (
        "Install Maven and Java 11 or 17 (apt-get install maven), or give a jar that you trust, such as Beam's "
        f"beam-runners-flink-{FLINK_VERSION}-job-server, with --flink-job-server-jar or {JAR_VARIABLE}, or use "
        "--runner prism."
    )
    what = f"Beam's job server for Flink {FLINK_VERSION}"
    cached = {"cache": lambda: checked_jar(cached_jar())}
    return find_or_make(cached_jar().parent, cached, {"Maven": _built}, FlinkError, what, remedy)


def way_to_jar(flink: str) -> str:
    """What somebody does who needs a job server for this version of Flink."""
    if flink == FLINK_VERSION:
        return f"omit --flink-job-server-jar and {JAR_VARIABLE}, so that llmdo builds one"
    return (
        f"get beam-runners-flink-{flink}-job-server from Maven Central, and name it with --flink-job-server-jar or "
        f"{JAR_VARIABLE}; llmdo builds one for Flink {FLINK_VERSION} only"
    )


def checked_jar(jar: Path) -> Path:
    """Returns ``jar`` if it is a job server for a version of Flink that is accepted. Raises FlinkError."""
    beam_version_of(jar)
    if (flink := flink_version_of(jar)) not in FLINK_VERSIONS:
        raise FlinkError(f"{jar} is a job server for Flink {flink}, and llmdo runs on {SUPPORTED}")
    return jar


def beam_version_of(jar: Path) -> tuple[int, ...]:
    """The Beam version of a job server, such as (2, 70, 0). Raises FlinkError for another file."""
    found = _version_in(jar, _BEAM_PROPERTIES, r"^(?:sdk_)?version=(\d+)\.(\d+)\.(\d+)", "Beam")
    return tuple(map(int, found.groups()))


def flink_version_of(jar: Path) -> str:
    """The version of Flink that a job server is for, such as 1.19. Raises FlinkError for another file."""
    return _version_in(jar, _FLINK_PROPERTIES, r"^project\.version=(\d+\.\d+)", "Flink")[1]


def _version_in(jar: Path, entry: str, pattern: str, of: str) -> re.Match[str]:
    if not jar.is_file():
        raise FlinkError(f"there is no {jar}")
    try:
        with zipfile.ZipFile(jar) as content:
            content.getinfo(_DRIVER)
            properties = content.read(entry).decode()
    except (zipfile.BadZipFile, KeyError):
        raise FlinkError(f"{jar} is not a job server for Flink") from None
    found = re.search(pattern, properties, re.MULTILINE)
    if found is None:
        raise FlinkError(f"{jar} does not have its {of} version in it")
    return found


def java() -> Path:
    """The Java that JAVA_HOME or PATH names. Raises FlinkError for none, or one that is too old."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    remedy = f"Flink needs Java {JAVA_AT_LEAST} or 17: apt-get install openjdk-17-jre-headless, or set JAVA_HOME"
    if found is None:
        raise FlinkError(f"there is no java {f'in JAVA_HOME={home}' if home else 'on PATH'}; {remedy}")
    said = run_tool([found, "-version"], _JAVA_TIMEOUT).stdout
    # 1.8.0_392 is Java 8.
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None:
        raise FlinkError(f"{found} -version prints no version ({said.strip()[:80] or 'nothing'}); {remedy}")
    if int(version[1]) < JAVA_AT_LEAST:
        raise FlinkError(f"{found} is Java {version[1]}; {remedy}")
    return Path(found)


def cached_jar() -> Path:
    """Where a jar that was built is kept; another pom has another folder."""
    pom = hashlib.sha256(_POM.read_bytes()).hexdigest()[:8]
    return cache_folder() / f"flink-{FLINK_VERSION}-job-server-{pom}" / "job-server.jar"


def _built() -> Path:
    maven = shutil.which("mvn")
    if maven is None:
        raise FlinkError("there is no mvn on PATH")
    java()
    say(f"building Beam's job server for Flink {FLINK_VERSION} with {maven} (up to 4 minutes, once) …")
    with workshop(cached_jar().parent) as folder:
        shutil.copy(_POM, folder / "pom.xml")
        succeed([maven, "--quiet", "--batch-mode", "--strict-checksums", "package"], {}, folder)
        jar = checked_jar(folder / "target" / "job-server.jar")
        found = content_of(jar)
        if found != _CONTENT:
            raise FlinkError(f"what {maven} built is not what it should be: its content is {found}, not {_CONTENT}")
        return jar.replace(cached_jar())


def content_of(jar: Path) -> str:
    """SHA-256 of the names and contents in a jar that Maven built, except for those that differ in each build."""
    whole = hashlib.sha256()
    with zipfile.ZipFile(jar) as content:
        for entry in sorted(content.infolist(), key=attrgetter("filename")):
            if not entry.filename.startswith(_MAKERS_OWN):
                whole.update(f"{entry.filename}\n{hashlib.sha256(content.read(entry)).hexdigest()}\n".encode())
    return whole.hexdigest()


def find_all() -> Path:
    """Where the jar is; a missing one is built, and what keeps it on loopback is fetched. Raises ToolError."""
    java()
    jar = find_jar(None)
    loopback_agent.find_agent(jar)
    return jar


if __name__ == "__main__":
    sys.exit(print_path(find_all))
