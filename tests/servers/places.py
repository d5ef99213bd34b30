"""The servers that the slow tests ask: how each is started, and what it can."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmdo.backends.llama_cpp import files as llama_files
from llmdo.settings.tools import run_tool
from tests.fakes.ports import free_port
from tests.servers import installing
from tests.servers.serving import Server, User, serving

KEY = "sk-of-the-slow-tests"
MODEL = "smollm2"


@dataclass(frozen=True)
class Place:
    """A server with SmolLM2, and its user.

    Attributes:
        server: where the user's calls go.
        behind: the server with the model, where that is another.
        checks_key, checks_model: whether it refuses a wrong key, and a model's name that it does not know.
        vectors: the model that embeds, if any.
        refuses: by the names of test_servers' lines, the error's class, and a word of the service.
    """

    server: Server
    user: User
    behind: Server
    checks_key: bool = True
    checks_model: bool = True
    vectors: str | None = None
    refuses: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {
            "long": ("ContextOverflow", "context"),
            "hot": ("InvalidRequest", "temperature"),
            "image": ("InvalidRequest", "image"),
        }
    )


@contextmanager
def llama_cpp(folder: Path, *mode: str) -> Iterator[Place]:
    """llama.cpp's server; it has one model, whatever name is asked for."""
    port = free_port()
    command = [sys.executable, "-m", "tests.servers.llama_server", str(port), *mode]
    server = Server(command, port, "/health", folder / "llama.log", {"LLAMA_API_KEY": KEY})
    with serving(server):
        yield Place(server, User(folder, f"{server.url}/v1", KEY, MODEL), server, checks_model=False)


@contextmanager
def litellm(folder: Path) -> Iterator[Place]:
    """LiteLLM's proxy, without a database, before llama.cpp's server."""
    program = installing.litellm()
    with llama_cpp(folder) as behind, llama_cpp(folder, "embeddings") as embedding:
        port, settings = free_port(), folder / "litellm.yaml"
        models = [
            _deployment(MODEL, behind.server),
            _deployment("limited", behind.server, rpm=3),
            _deployment("pair", behind.server, tpm=1_000_000),
            _deployment("pair", behind.server, tpm=1_000_001),
            _deployment("vectors", embedding.server),
        ]
        # Its settings are YAML, and so JSON.
        router = {"num_retries": 0, "enable_pre_call_checks": True}
        settings.write_text(json.dumps({"model_list": models, "router_settings": router}))
        command = [program, "--config", settings, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        env = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
        server = Server(command, port, "/health/liveliness", folder / "litellm.log", env)
        with serving(server):
            yield Place(server, User(folder, f"{server.url}/v1", KEY, MODEL), behind.server, vectors="vectors")


def _deployment(name: str, server: Server, **more: int) -> dict:
    reached = {"model": f"openai/{MODEL}", "api_base": f"{server.url}/v1", "api_key": KEY}
    return {"model_name": name, "litellm_params": reached | more}


@contextmanager
def ollama(folder: Path) -> Iterator[Place]:
    """Ollama, with the model made of the weights' file."""
    program, port = installing.ollama(), free_port()
    env = {"HOME": str(folder), "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(folder / "models")}
    server = Server([program, "serve"], port, "/", folder / "ollama.log", env | {"OLLAMA_CONTEXT_LENGTH": "1024"})
    (folder / "Modelfile").write_text(f"FROM {llama_files.weights()}\n")
    with serving(server):
        done = run_tool([program, "create", MODEL, "-f", folder / "Modelfile"], 300, env)
        assert done.returncode == 0, done.stdout
        # It cuts a prompt that is too long, and leaves out an image that the model does not see, without a word.
        refuses = {"hot": ("InvalidRequest", "temperature"), "tools": ("InvalidRequest", "tools")}
        user = User(folder, f"{server.url}/v1", KEY, MODEL)
        yield Place(server, user, server, checks_key=False, vectors=MODEL, refuses=refuses)
