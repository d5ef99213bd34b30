"""The package beside the lowest and the newest versions of what it needs, and of what others bring along."""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.company_network import Service, listening
from tests.shipped.packages import ROOT, call, copy_of_the_checkout, new_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# What no dependency of ours bounds from below as others' pipelines have it. Beam allows protobuf from 3.20.3 on, but
# what comes with Python 3.11 begins with 4.25.
NEIGHBOURS = {"lowest": ["boto3==1.36.0", "protobuf==4.25.8"], "newest": ["boto3", "protobuf"]}
PIPELINE = """
    import importlib.metadata
    import apache_beam as beam
    from apache_beam.testing.util import assert_that, equal_to
    import boto3
    import llmdo
    import llmdo.storage.objects.r2_filesystem

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([beam.Row(id=1, text="hi"), beam.Row(id=2, text="ho")])
        answers = rows | llmdo.AskModel("openai/m", "Say {text}", ledger="ledger")
        found = answers | beam.Map(lambda row: (row.id, row.answer, row.error))
        assert_that(found, equal_to([(1, "ok", None), (2, "ok", None)]))
    for name in ("boto3", "protobuf", "pydantic"):
        print(name, importlib.metadata.version(name))
"""


def lowest() -> list[str]:
    """``NAME==VERSION`` of each dependency that has a lower bound, but Beam, whose minor is fixed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [re.match(r"(?P<name>[\w-]+)>=(?P<version>[\d.]+)", one) for one in listed]
    return [f"{one['name']}=={one['version']}" for one in bounds if one and one["name"] != "apache-beam"]


def test_the_lowest_versions_are_those_of_the_ranges() -> None:
    assert {"pydantic==2.11", "urllib3==2.2.1"} < set(lowest())
    assert len(lowest()) > 10


@pytest.mark.parametrize("versions", ["lowest", "newest"])
def test_rows_are_answered_beside_these_versions(versions: str, tmp_path: Path) -> None:
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    python = new_environment(tmp_path / "venv")
    bounds = tmp_path / "bounds.txt"
    bounds.write_text("\n".join(lowest() if versions == "lowest" else ()))
    install = (python, "-m", "pip", "install", "-q", "--constraint", bounds, checkout, *NEIGHBOURS[versions])
    call(*install, cwd=tmp_path)
    call(python, "-m", "pip", "check", cwd=tmp_path)
    (tmp_path / "main.py").write_text(textwrap.dedent(PIPELINE))
    with listening(Service) as (url, service):
        said = call(
            *(python, "main.py"),
            cwd=tmp_path,
            OPENAI_BASE_URL=f"{url}/v1",
            OPENAI_API_KEY="sk-test",
            HOME=str(tmp_path),
        )
    assert [path for method, path, *_ in service.seen if method == "POST"] == ["/v1/chat/completions"] * 2
    found = dict(line.split() for line in said.splitlines())
    if versions == "lowest":
        assert found == {"boto3": "1.36.0", "protobuf": "4.25.8", "pydantic": "2.11.0"}
    else:
        assert set(found) == {"boto3", "protobuf", "pydantic"}
        assert found["pydantic"] != "2.11.0"
