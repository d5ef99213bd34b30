"""What pip and Beam make of the checkout, and what a user has who installs that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
from email.parser import Parser
from pathlib import Path

import pytest
from apache_beam.runners.portability.stager import Stager

import llmdo
from tests.company_network import Service, listening, rows
from tests.shipped.packages import ROOT, call, copy_of_the_checkout, files_of_the_product, new_environment

# What stays in a checkout: hundreds of megabytes of npm's packages, what is built of them, and pictures.
NOT_SHIPPED = ("web/node_modules", "web/dist", "worker/node_modules", "worker/dist", "tests/web/client", "out")
# The newest first; the one that runs this test is the last resort.
PYTHONS = (*(path for name in ("3.13", "3.12") if (path := shutil.which(f"python{name}"))), sys.executable)


def pythons() -> list[str]:
    """Those at hand that llmdo supports: on the path, and of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [str(path) for name in ("3.13", "3.12") for path in sorted(pyenv.glob(f"{name}.*/bin/python"))]
    return [*found, *PYTHONS]


def test_a_worker_can_install_the_package_that_beam_builds_of_setup_py(tmp_path):
    checkout, unpacked = copy_of_the_checkout(tmp_path / "checkout"), tmp_path / "unpacked"
    for folder in NOT_SHIPPED:
        (checkout / folder / "inside").mkdir(parents=True)
        (checkout / folder / "inside" / "it.py").write_text("")
    with tarfile.open(Stager._build_setup_package(str(checkout / "setup.py"), str(tmp_path))) as package:
        package.extractall(unpacked, filter="data")
    shutil.rmtree(checkout)
    (root,) = unpacked.iterdir()
    # What pip does with it on a worker, without the network that pip's isolated build needs.
    command = [sys.executable, "setup.py", "-q", "egg_info", "build", "--build-lib", str(tmp_path / "installed")]
    built = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    installed = {str(path.relative_to(tmp_path / "installed")) for path in (tmp_path / "installed").rglob("*")}
    assert files_of_the_product() <= installed
    assert {name for name in installed if "/" not in name} == {"llmdo"}
    described = Parser().parsestr((root / "llm.do.egg-info" / "PKG-INFO").read_text())
    assert (described["Name"], described["Version"]) == ("llm.do", llmdo.__version__)
    assert (root / "LICENSE").is_file()
    assert {path.name for path in (root / "docs").iterdir()} == {path.name for path in (ROOT / "docs").iterdir()}
    assert {path.name for path in ROOT.glob("*.md")} <= {path.name for path in root.iterdir()}
    assert not {path.name for path in root.rglob("*")} & {"inside", "it.py"}


# A user's project, with rooms of the same names, and a pipeline of its own.
PIPELINE = """
    import apache_beam as beam
    from apache_beam.ml.inference import RunInference
    from apache_beam.testing.util import assert_that

    import llmdo
    import pipelines.mine
    import transforms

    def check(results):
        (result,) = results
        assert isinstance(result.inference, llmdo.ModelError), result
        assert "local" in str(result.inference), result.inference

    assert (pipelines.mine.HERE, transforms.HERE) == ("my pipelines", "my transforms")
    with beam.Pipeline("FnApiRunner") as root:
        asked = root | beam.Create([{"prompt": "hi", "model": "local/none"}])
        assert_that(asked | RunInference(llmdo.ModelHandler("local/none")), check)
    print("ran")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "python"), [("wheel", pythons()[0]), ("sdist", sys.executable)], ids=["wheel", "sdist"]
)
def test_what_is_built_works_in_a_project_with_rooms_of_the_same_names(kind, python, tmp_path):
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    here = new_environment(tmp_path / "venv", python)
    call(here, "-m", "pip", "install", "-q", "build", cwd=tmp_path)
    call(here, "-m", "build", f"--{kind}", "--outdir", tmp_path / "dist", cwd=checkout)
    shutil.rmtree(checkout)
    (package,) = (tmp_path / "dist").iterdir()
    # Newer than those that are tested elsewhere, where there are newer ones.
    call(here, "-m", "pip", "install", "-q", package, "urllib3", "pydantic", "--upgrade", cwd=tmp_path)
    top = call(
        here, "-c", "import importlib.metadata as m; print(*{f.parts[0] for f in m.files('llm.do')})", cwd=tmp_path
    )
    assert [name for name in top.split() if not name.endswith(".dist-info") and name != ".."] == ["llmdo"]

    project = tmp_path / "project"
    for room in ("transforms", "pipelines"):
        (project / room).mkdir(parents=True)
        (project / room / "__init__.py").write_text(f"HERE = 'my {room}'\n")
    (project / "pipelines" / "mine.py").write_text("HERE = 'my pipelines'\n")
    (project / "main.py").write_text(textwrap.dedent(PIPELINE))
    assert call(here, "main.py", cwd=project).splitlines()[-1] == "ran"
    (project / "in.jsonl").write_text('{"prompt": "hi"}\n{"prompt": "again"}\n')
    command = (here.parent / "llmdo", "run", "in.jsonl", "--output", "out", "--model", "openai/m")
    with listening(Service) as (url, service):
        call(*command, cwd=project, OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY="sk-test", HOME=str(tmp_path))
    assert [path for method, path, *_ in service.seen if method == "POST"] == ["/v1/chat/completions"] * 2
    assert [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows(project, "shard")] == ["ok"] * 2
