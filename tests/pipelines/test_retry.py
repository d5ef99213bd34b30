import apache_beam as beam

from llmdo.pipelines.options import check_options
from llmdo.pipelines.retry import build


def test_the_graph_is_one_chain_of_five_steps_and_its_proto_holds_no_secret(monkeypatch, tmp_path):
    secrets = {
        name: f"{name}-that-nobody-may-see"
        for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY")
    }
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0123456789abcdef" * 2)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, check_options(output="r2://bucket/output/", retry="all"), "run-1")
    proto = pipeline.to_runner_api()
    transforms = proto.components.transforms
    steps = [transforms[step].unique_name for step in transforms[proto.root_transform_ids[0]].subtransforms]
    assert steps == ["Find errors", "Read errors", "Answer lines", "Write shards", "Merge files"]
    sent = proto.SerializeToString()
    assert not [value for value in secrets.values() if value.encode() in sent]
