import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.http.sse import read_events


def events(*chunks):
    async def scenario():
        async def arrive():
            for chunk in chunks:
                yield chunk

        return [event async for event in read_events(arrive())]

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data:a\r\n\r\n", ["a"]),
        (b": ping\n\nevent: x\nid: 4\ndata: a\n\n", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\n\ndata: [DONE]", ["a", "[DONE]"]),
        (b"", []),
    ],
)
def test_events_are_read_as_the_standard_says(sent, read):
    assert events(sent) == read


def test_line_separators_inside_json_do_not_cut_an_event():
    text = '{"response": "a\u2028b\u0085c\x0bd"}'
    assert events(f"data: {text}\n\n".encode()) == [text]


@given(st.lists(st.integers(1, 40)))
def test_any_cutting_into_chunks_gives_the_same_events(cuts):
    sent = 'data: {"response": "Grüße 🎉"}\r\n\r\n: ping\n\ndata: two\ndata: lines\n\ndata: [DONE]\n\n'.encode()
    chunks, rest = [], sent
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert events(*chunks, rest) == events(sent) == ['{"response": "Grüße 🎉"}', "two\nlines", "[DONE]"]
