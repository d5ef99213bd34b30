"""A run on this machine imports Beam without what it does not use of it."""

import json
import subprocess
import sys

import pytest

from llmdo.runners.lean_beam import OPTIONAL

# Prints which optional packages Beam's import has imported, whether Beam was imported, and whether they work later.
_SCRIPT = """
import json, logging, sys
logging.basicConfig(level="INFO")
from llmdo.runners.lean_beam import OPTIONAL, import_beam
{before}
import_beam("{runner}")
seen, beam = [name for name in OPTIONAL if name in sys.modules], "apache_beam" in sys.modules
import apache_beam.io.gcp, boto3, pymongo, pyarrow
print(json.dumps([seen, beam, bool(boto3.client and pyarrow.table and pymongo.MongoClient)]))
"""


def imported(runner, before=""):
    script = _SCRIPT.format(runner=runner, before=before)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(ended.stdout), ended.stderr


@pytest.mark.parametrize("runner", ["direct", "prism"])
def test_a_run_on_this_machine_imports_nothing_optional_and_can_do_so_later(runner):
    found, log = imported(runner)
    assert found == [[], True, True]
    assert "bson" not in log


def test_what_beam_hardly_needs_is_executed_when_it_is_first_used():
    script = """
import sys
from llmdo.runners.lean_beam import import_beam
import_beam("direct")
print("httplib2" in sys.modules, "httplib2.auth" in sys.modules, "pyparsing" in sys.modules)
from apache_beam.internal.http_client import get_new_http
print(get_new_http().timeout, "httplib2.auth" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.split() == ["True", "False", "False", "60", "True"]


@pytest.mark.parametrize("runner", ["flink", "dataflow"])
def test_other_runners_get_beam_as_it_is(runner):
    assert imported(runner, before="import apache_beam")[0] == [list(OPTIONAL), True, True]
    assert imported(runner)[0] == [[], False, True]  # they import it themselves


def test_what_is_imported_already_stays():
    assert imported("direct", before="import boto3")[0] == [["boto3"], True, True]
