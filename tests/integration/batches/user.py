"""A user of batches of the local OpenAI."""

from __future__ import annotations

import json
from contextlib import nullcontext

from llmdo.pipelines.options import check_options
from llmdo.runners.running.run import run

MODEL = "openai/gpt-4o-mini"


class User:
    """Runs files of prompts over one output, on the direct runner."""

    def __init__(self, server, folder) -> None:
        self.server, self.folder = server, folder

    def run(self, prompts, *more, **options):
        """The summary; ``more``: lines besides, as they are."""
        lines = [json.dumps({"id": number, "prompt": prompt}) for number, prompt in enumerate(prompts)]
        source = self.folder / "in.jsonl"
        source.write_text("".join(f"{line}\n" for line in [*lines, *more]))
        given = {"input": [str(source)], "output": str(self.folder / "out"), "model": MODEL, "mode": "batch"}
        return run(check_options(**given | {"runner": "direct"} | options), lambda state: nullcontext())

    def rows(self):
        found = [*(self.folder / "out").rglob("shard-*.jsonl"), *(self.folder / "out").rglob("errors-*.jsonl")]
        return [json.loads(line) for shard in found for line in shard.read_text().splitlines()]

    def check(self, prompts):
        """Each prompt is answered once, in a row of its own, and was paid for once."""
        answered = [row for row in self.rows() if row.get("response")]
        texts = {row["id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in answered}
        assert len(texts) == len(answered)
        assert texts == {number: f"echo: {prompt}" for number, prompt in enumerate(prompts)}
        paid = self.server.stats()["paid"]["by_prompt"]
        assert (len(paid), set(paid.values()) - {1}) == (len(prompts), set())


def prompts(count):
    return [f"line {number} ✓" for number in range(count)]
