"""A source's lines are taken from a stream that is never in memory whole."""

import pytest

from llmdo.runners.inspecting.export.joining import NotJoined, SourceLines


def test_lines_are_cut_from_chunks_and_only_a_chunk_and_a_line_are_held():
    body = bytes(range(256)) * 400
    lines = SourceLines(body[at : at + 1000] for at in range(0, len(body), 1000))
    at, most = 0, 0
    for length in [1, 7, 999, 2500, 3] * 25:
        at += length % 5  # rows of other kinds lie between
        assert lines.line(at, at + length) == body[at : at + length]
        at += length
        most = max(most, len(lines._held))
    assert most <= 2500 + 1000
    with pytest.raises(NotJoined, match="it ends before"):
        lines.line(len(body) - 1, len(body) + 1)
