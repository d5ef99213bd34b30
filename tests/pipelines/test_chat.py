import apache_beam as beam
import pytest

from llmdo.backends.money.limits import Limits
from llmdo.pipelines.chat import answer_in_turn, build
from llmdo.pipelines.chat_options import check_chat_options
from llmdo.transforms.answers.ledger_settings import LedgerSettings

SECRETS = {
    "CLOUDFLARE_API_TOKEN": "token-that-nobody-may-see",
    "R2_ACCESS_KEY_ID": "key-id-that-nobody-may-see",
    "R2_SECRET_ACCESS_KEY": "secret-that-nobody-may-see",
    "BRAINTRUST_API_KEY": "key-that-nobody-may-see",
}
QUEUES = {"queue": "0" * 32, "reply_queue": "1" * 32, "log": "r2://bucket/chat/"}
FILES = {"events": ("a.jsonl",), "output": "out/"}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0123456789abcdef" * 2)
    monkeypatch.setenv("BRAINTRUST_PROJECT_ID", "project")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("STORE_ID", raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("given", [QUEUES, FILES])
def test_the_graph_is_one_chain_and_its_proto_holds_no_secret(environment, given):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, check_chat_options(**given), "run-1")
    proto = pipeline.to_runner_api()
    transforms = proto.components.transforms
    steps = [transforms[step].unique_name for step in transforms[proto.root_transform_ids[0]].subtransforms]
    assert steps == [
        "Log events",
        "One conversation does not wait for another",
        "Answer in turn",
        "Let go of answers",
        "Tell what became of each",
    ]
    # Without it Prism runs the poll and the answers as one stage, and nothing is polled before all is answered.
    assert (
        transforms[transforms[proto.root_transform_ids[0]].subtransforms[1]].spec.urn == "beam:transform:reshuffle:v1"
    )
    sent = proto.SerializeToString()
    assert not [name for name, value in SECRETS.items() if value.encode() in sent]


def test_how_messages_are_answered_goes_with_the_step(environment, monkeypatch):
    monkeypatch.setenv("LLMDO_GATEWAY", "gate")
    how = {"concurrency": "fixed:3", "rpm": 60, "max_cost": 2.0, "deltas": True, "since": "1970-01-01T00:00:09Z"}
    options = check_chat_options(**QUEUES, **how, system="Be kind.", ledger="none")
    step = answer_in_turn(options, options.run("run-1"))
    assert (step.run.run_id, step.replies.args, step.calls.window, step.calls.fixed, step.deltas) == (
        "run-1",
        ("1" * 32,),
        3,
        True,
        True,
    )
    assert (step.since, step.calls.rates.rpm, step.calls.limits) == (9.0, 60, Limits(2.0))
    assert (step.calls.gateway, step.calls.kept) == ("gate", LedgerSettings("none", "same-message"))
    assert step.defaults.system == "Be kind."
    assert not step.stops
    assert step.defaults.parameters == {"temperature": 0.7, "max_tokens": 1000}


def test_only_a_run_that_ends_by_itself_stops_for_an_error_that_every_call_would_meet(environment):
    options = check_chat_options(**FILES)
    assert answer_in_turn(options, options.run("run-1")).stops
