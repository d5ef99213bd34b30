"""Objects of a bucket in the lines of other APIs are what the run fetches, as in OpenAI's."""

import json

import pytest

from llmdo.backends.requests import MediaReference
from llmdo.transforms.media import MediaSettings
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

IMAGE, SOUND, PAGES = "r2://bucket/a.png", "r2://bucket/a.wav", "r2://bucket/a.pdf"


def block(kind, url):
    return {"type": kind, "source": {"type": "url", "url": url}}


def part(media_type, url):
    return {"fileData": {"mimeType": media_type, "fileUri": url}}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            {"params": {"messages": [{"role": "user", "content": [block("image", IMAGE), block("document", PAGES)]}]}},
            [IMAGE, PAGES],
        ),
        (
            {
                "request": {
                    "contents": [
                        {"parts": [part("image/png", IMAGE), part("audio/wav", SOUND), part("application/pdf", PAGES)]}
                    ]
                }
            },
            [IMAGE, SOUND, PAGES],
        ),
    ],
)
def test_a_name_in_the_runs_bucket_is_a_reference(line, names):
    request = parse_prompt(json.dumps(line).encode(), "r", Defaults("openai/m"), lambda *_: 1).request
    parts = MediaSettings().marked(request, "r2://bucket").messages[0].content
    values = [value for one in parts for inner in one.values() if isinstance(inner, dict) for value in inner.values()]
    found = [value for value in values if isinstance(value, MediaReference)]
    assert [str(reference) for reference in found] == names
