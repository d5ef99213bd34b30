import apache_beam as beam
import pytest

from pipelines.jsonl import build
from pipelines.options import check_options

SECRETS = {
    "CLOUDFLARE_API_TOKEN": "token-that-nobody-may-see",
    "R2_ACCESS_KEY_ID": "key-id-that-nobody-may-see",
    "R2_SECRET_ACCESS_KEY": "secret-that-nobody-may-see",
}


@pytest.mark.parametrize("source", [{"queue": "0" * 32}, {"input": "r2://bucket/input/"}])
def test_the_graph_is_one_chain_of_six_steps_and_its_proto_holds_no_secret(monkeypatch, tmp_path, source):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0123456789abcdef" * 2)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, check_options(output="r2://bucket/output/", **source), "run-1")
    proto = pipeline.to_runner_api()
    transforms = proto.components.transforms
    steps = [transforms[step].unique_name for step in transforms[proto.root_transform_ids[0]].subtransforms]
    assert steps == ["Find files", "Open files", "Read lines", "Answer lines", "Write shards", "Settle files"]
    sent = proto.SerializeToString()
    assert not [name for name, value in SECRETS.items() if value.encode() in sent]
