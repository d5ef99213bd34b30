"""``--gateway`` on the command line, through Beam: what the gateway adds to a reply shows that it was called."""

import json

import pytest

from llmdo.runners.cli.main import main
from llmdo.settings.environment import ai_gateway
from tests.integration.cloud import MODEL, prompts


def statuses(cloud):
    return {row["details"]["cache_status"] for row in cloud.rows("a.jsonl")}


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_the_option_wins_over_the_variable(cloud, monkeypatch, runner):
    monkeypatch.setenv("LLMDO_GATEWAY", "there-is-none")
    cloud.upload("a.jsonl", prompts(5))
    assert cloud.run(gateway="default", runner=runner).exit_code == 0
    assert statuses(cloud) == {"MISS"}
    assert ai_gateway().name == "there-is-none"  # it was this run's, and no later one's
    cloud.check()


def test_a_question_goes_by_the_gateway_too(cloud, capsys):
    for status in ("MISS", "HIT"):
        with pytest.raises(SystemExit) as left:
            main(["ask", "a b", "--model", MODEL, "--gateway", "cached", "--json"])
        assert left.value.code == 0
        assert json.loads(capsys.readouterr().out)["details"]["cache_status"] == status
    assert cloud.stats()["paid"]["calls"] == 1
    with pytest.raises(SystemExit):
        main(["ask", "a b", "--model", MODEL, "--json"])
    assert "details" not in json.loads(capsys.readouterr().out)
