"""What Beam makes of setup.py for ``--setup_file``, and what a worker installs of that."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from apache_beam.runners.portability.stager import Stager

HERE = Path(__file__).parents[1]
ROOMS = ("backends", "local", "pipelines", "runners", "storage", "transforms")


def test_a_worker_can_install_the_package_that_beam_builds_of_setup_py(tmp_path):
    checkout, unpacked = tmp_path / "checkout", tmp_path / "unpacked"
    checkout.mkdir()  # a copy, since setuptools writes into the folder that it builds from
    for path in (*ROOMS, "setup.py", "pyproject.toml", "requirements.txt", "README.md", "MANIFEST.in"):
        source = HERE / path
        if source.is_dir():
            shutil.copytree(source, checkout / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout / path)
    with tarfile.open(Stager._build_setup_package(str(checkout / "setup.py"), str(tmp_path))) as package:
        package.extractall(unpacked, filter="data")
    shutil.rmtree(checkout)
    (root,) = unpacked.iterdir()
    # What pip does with it on a worker, without the network that pip's isolated build needs.
    command = [sys.executable, "setup.py", "-q", "egg_info", "build", "--build-lib", str(tmp_path / "installed")]
    built = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    installed = {str(path.relative_to(tmp_path / "installed")) for path in (tmp_path / "installed").rglob("*.*")}
    for room in ROOMS:
        there = {str(path.relative_to(HERE)) for path in (HERE / room).rglob("*.*") if path.suffix != ".pyc"}
        assert {name for name in there if "__pycache__" not in name} <= installed
    assert {"runners/flink_pom.xml", "runners/loopback.btm", "pipelines/system_prompt.md"} <= installed
    needed = (root / "llmdo.egg-info" / "requires.txt").read_text().splitlines()
    wanted = (HERE / "requirements.txt").read_text().splitlines()
    assert {line for line in wanted if line and not line.startswith("#")} <= set(needed)
