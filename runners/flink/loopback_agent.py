"""Keeps the servers of a Java program on loopback: Byteman, a Java agent, with the rules in ``loopback.btm``.

Beam's servers ignore the host that they are given (``ServerFactory`` of its Java SDK uses ``forPort``), so there is no
option for it.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

from llmdo.settings.environment import cache_folder
from llmdo.settings.tools import ToolError, find_or_make, say, succeed, workshop

VERSION = "4.0.25"
AGENT_SHA256 = "8739e25888ec1a79e81fc193889546933c2d22beb84a421b2151397981c63898"
AGENT_JAR = f"byteman-{VERSION}.jar"
_URL = f"https://repo1.maven.org/maven2/org/jboss/byteman/byteman/{VERSION}/{AGENT_JAR}"
_RULES = Path(__file__).with_name("loopback.btm")
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"


class AgentError(ToolError):
    """The agent is missing and could not be obtained; the message has the remedy."""


def java_arguments(agent: Path) -> list[str]:
    """Arguments that come before ``-jar``."""
    # Rules for Java's own classes need the agent on the boot class path.
    return [f"-javaagent:{agent}=script:{_RULES},boot:{agent}"]


def find_agent(beside: Path | None = None) -> Path:
    """The path of Byteman's jar, whose SHA-256 is known. The first of these that holds:

    in the folder of ``beside``, a job server; in this program's cache; fetched by Maven (0.9 MB), and kept there.
    Raises AgentError.
    """
    given = {f"beside {beside.name}": partial(_checked, beside.with_name(AGENT_JAR))} if beside else {}
    found = {**given, "cache": partial(_checked, cached_agent())}
    remedy = f"Install Maven (apt-get install maven), or put {_URL} into {(beside or cached_agent()).parent}"
    what = f"{AGENT_JAR}, which keeps Java's servers on loopback,"
    return find_or_make(cached_agent().parent, found, {"Maven": _fetched}, AgentError, what, remedy)


def cached_agent() -> Path:
    """Where a jar that was fetched is kept."""
    return cache_folder() / f"byteman-{VERSION}" / AGENT_JAR


def _checked(jar: Path) -> Path:
    if not jar.is_file():
        raise AgentError(f"there is no {jar}")
    found = hashlib.sha256(jar.read_bytes()).hexdigest()
    if found != AGENT_SHA256:
        raise AgentError(f"{jar} is not Byteman {VERSION}: its SHA-256 is {found}, not {AGENT_SHA256}")
    return jar


def _fetched() -> Path:
    maven = shutil.which("mvn")
    if maven is None:
        raise AgentError("there is no mvn on PATH")
    say(f"fetching {AGENT_JAR} with {maven} (0.9 MB, once) …")
    with workshop(cached_agent().parent) as folder:
        artifact = f"-Dartifact=org.jboss.byteman:byteman:{VERSION}"
        command = [maven, "--quiet", "--batch-mode", "--strict-checksums", _PLUGIN, artifact]
        succeed([*command, f"-DoutputDirectory={folder}"], {}, folder)
        return _checked(folder / AGENT_JAR).replace(cached_agent())
