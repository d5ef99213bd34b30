from __future__ import annotations

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmdo.runners.flink import loopback_agent
from llmdo.runners.flink.jar import java
from llmdo.runners.flink.loopback_agent import AGENT_JAR, AgentError, cached_agent, find_agent, java_arguments
from tests.runners.flink.test_jar import bare_machine, script

__all__ = ["bare_machine"]  # a fixture

CONTENT = b"an agent"
# Whatever way a server may be opened in Java, with the wildcard address and without any.
SERVERS = """
import java.net.*;
import java.nio.channels.*;

public class Servers {
    static SocketAddress[] given = {new InetSocketAddress(0), new InetSocketAddress("::", 0), null};

    public static void main(String[] arguments) throws Exception {
        System.out.println(new ServerSocket(0).getInetAddress().getHostAddress());
        for (SocketAddress address : given) {
            ServerSocket socket = new ServerSocket();
            socket.bind(address);
            System.out.println(socket.getInetAddress().getHostAddress());
            ServerSocketChannel channel = ServerSocketChannel.open().bind(address);
            System.out.println(((InetSocketAddress) channel.getLocalAddress()).getAddress().getHostAddress());
        }
        ServerSocket own = new ServerSocket();
        own.bind(new InetSocketAddress("127.0.0.2", 0));
        System.out.println(own.getInetAddress().getHostAddress());
    }
}
"""


@pytest.fixture(autouse=True)
def content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback_agent, "AGENT_SHA256", hashlib.sha256(CONTENT).hexdigest())


def place(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AGENT_JAR).write_bytes(content)
    return folder / AGENT_JAR


def test_the_one_beside_the_job_server_comes_before_the_cache(tmp_path: Path) -> None:
    cached = place(cached_agent().parent)
    assert find_agent(tmp_path / "job-server.jar") == cached
    beside = place(tmp_path)
    assert find_agent(tmp_path / "job-server.jar") == beside


def fake_maven(tmp_path: Path, content: str) -> None:
    """``mvn …:copy`` that writes this content to the given place, and counts its calls."""
    script(
        tmp_path / "bin" / "mvn",
        f'echo "$*" >> {tmp_path}/calls\nfor last; do :; done\nprintf "{content}" > "${{last#*=}}/{AGENT_JAR}"',
    )


def test_maven_fetches_it_once_and_nothing_else_stays(tmp_path: Path) -> None:
    fake_maven(tmp_path, CONTENT.decode())
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(find_agent, [tmp_path / "job-server.jar"] * 3))
    assert found == {cached_agent()}
    assert find_agent(tmp_path / "job-server.jar").read_bytes() == CONTENT
    assert sorted(path.name for path in cached_agent().parent.iterdir()) == [AGENT_JAR, "lock"]
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert {"--strict-checksums", f"-Dartifact=org.jboss.byteman:byteman:{loopback_agent.VERSION}"} <= set(call.split())


def test_another_content_is_never_used_wherever_it_comes_from(tmp_path: Path) -> None:
    place(tmp_path, b"evil")
    place(cached_agent().parent, b"evil")
    fake_maven(tmp_path, "evil")
    with pytest.raises(AgentError) as raised:
        find_agent(tmp_path / "job-server.jar")
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0].strip() for line in lines[1:-1]] == [
        "beside job-server.jar",
        "cache",
        "Maven",
    ]
    evil = hashlib.sha256(b"evil").hexdigest()
    assert all(f"its SHA-256 is {evil}, not {loopback_agent.AGENT_SHA256}" in line for line in lines[1:-1])
    assert lines[-1].startswith(
        "Install Maven (apt-get install maven), or put https://repo1.maven.org/maven2/org/jboss/"
    )
    assert lines[-1].endswith(f"/{AGENT_JAR} into {tmp_path}")


@pytest.mark.flink
def test_no_server_of_a_java_program_is_open_to_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real agent, where this machine keeps it
    agent = find_agent()
    (tmp_path / "Servers.java").write_text(SERVERS)
    command = [java(), *java_arguments(agent), tmp_path / "Servers.java"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line[0].isdigit()]
    assert shown == ["127.0.0.1"] * 7 + ["127.0.0.2"]
