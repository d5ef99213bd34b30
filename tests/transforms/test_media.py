"""Which names in a line become references, which are refused, and which are sent as they are."""

from __future__ import annotations

import pickle

import pytest

from llmdo.backends.media.errors import MediaNotAllowed
from llmdo.backends.media.kinds import Kind
from llmdo.backends.media.parts import Encoded, references_in, with_bytes
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.transforms.media import MediaSettings

OWN = "r2://bucket"
DATA = "data:image/png;base64,iVBORw0KGgo="


def chat(*parts):
    return ChatRequest("m", (Message("system", "s"), Message("user", tuple(parts)), Message("assistant", None)))


def image(name):
    return chat({"type": "text", "text": "r2://bucket/not-a-name"}, {"type": "image_url", "image_url": {"url": name}})


def references(request, *places, store=OWN, buckets=()):
    marked = MediaSettings(places, buckets).marked(request, store)
    return [(one.store, one.key, one.medium) for one in references_in(marked)]


@pytest.mark.parametrize(
    ("name", "places", "store", "expected"),
    [
        ("r2://bucket/a/b.png", (), OWN, (OWN, "a/b.png")),
        ("r2://other/a.png", ("r2://other/a.png",), OWN, ("r2://other", "a.png")),
        ("r2://other/a.png", ("r2://third/", "r2://other/"), "/home/me", ("r2://other", "a.png")),
        ("r2://bucket/a.png", ("none", "r2://bucket/"), OWN, (OWN, "a.png")),
        ("https://h.test/a.png", ("https://h.test/",), OWN, ("", "https://h.test/a.png")),
        ("https://h.test/a.png?sign=1", ("https://h.test/",), OWN, ("", "https://h.test/a.png?sign=1")),
        ("/data/a.png", ("/data",), OWN, ("/data", "a.png")),
        ("file:///data/a%20b.png", ("/data",), OWN, ("/data", "a b.png")),
    ],
)
def test_a_name_in_a_place_becomes_a_reference(name, places, store, expected):
    assert references(image(name), *places, store=store) == [(*expected, "image")]


def test_the_buckets_of_all_files_of_a_run_are_places():
    assert references(image("r2://second/a.png"), buckets=("first", "second")) == [("r2://second", "a.png", "image")]
    with pytest.raises(MediaNotAllowed):
        references(image("r2://second/a.png"), "none", buckets=("first", "second"))


@pytest.mark.parametrize(
    ("name", "places", "store"),
    [
        ("r2://other/a.png", (), OWN),
        ("r2://bucket/a.png", (), "/home/me"),
        ("r2://bucket/a.png", ("none",), OWN),
        ("r2://bucket/a.png", ("none", "r2://bucket/b/"), OWN),
        ("r2://bucket/../other/a.png", (), OWN),
        ("r2://bucket/", (), OWN),
        ("r2://", (), OWN),
        ("file:///etc/passwd", ("/data",), OWN),
        ("/etc/passwd", ("/data",), OWN),
        ("/data/../etc/passwd", ("/data",), OWN),
    ],
)
def test_a_name_that_was_not_given_is_refused_with_the_option(name, places, store):
    with pytest.raises(MediaNotAllowed, match=r"--media-from|names no object"):
        references(image(name), *places, store=store)


@pytest.mark.parametrize(
    "name",
    [
        DATA,
        "https://h.test/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "/etc/passwd",
        "a.png",
        "",
        "s3://bucket/a.png",
        "gs://bucket/a.png",
    ],
)
@pytest.mark.parametrize("places", [(), ("https://other.test/", "r2://other/")])
def test_any_other_name_is_sent_as_it_is(name, places):
    request = image(name)
    assert MediaSettings(places).marked(request, OWN) is request


def test_base64_that_begins_like_a_path_is_no_path():
    sound = chat({"type": "input_audio", "input_audio": {"data": "/9j/4AAQ/etc", "format": "wav"}})
    assert references(sound, "/data") == []


def test_an_error_shows_no_signature_and_no_name_that_a_shell_would_run():
    with pytest.raises(MediaNotAllowed) as raised:
        references(image("r2://$(rm -rf ~)/a.png"))
    assert "--media-from r2://BUCKET" not in str(raised.value)
    assert "--media-from r2://$(" not in str(raised.value)


def test_requests_without_parts_stay_the_same():
    for request in (
        ChatRequest("m", (Message("user", "r2://bucket/a.png"),)),
        EmbedRequest("m", ("r2://bucket/a.png",)),
        RawRequest("m", {"input": [[1, 2], [3]]}, path="embeddings"),
        RawRequest("m", {"prompt": "r2://bucket/a.png"}, path="completions"),
        RawRequest("m", {"image": [137, 80] * 1000, "prompt": "?"}),
    ):
        assert MediaSettings().marked(request, OWN) is request


PARTS = [
    (
        {"type": "image_url", "image_url": "r2://bucket/a", "more": 1},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}, "more": 1},
        "image/png",
    ),
    (
        {"type": "image_url", "image_url": {"url": "r2://bucket/a", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}},
        "image/png",
    ),
    (
        {"type": "input_image", "image_url": "r2://bucket/a", "detail": "low"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        "image/png",
    ),
    (
        {"type": "input_audio", "input_audio": {"url": "r2://bucket/a", "format": "flac"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        "audio/mpeg",
    ),
    (
        {"type": "file", "file": {"url": "r2://bucket/x/a.pdf"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        "application/pdf",
    ),
    (
        {"type": "input_file", "file_url": "r2://bucket/x/a.pdf", "filename": "b.pdf"},
        {"type": "input_file", "filename": "b.pdf", "file_data": "data:application/pdf;base64,AA=="},
        "application/pdf",
    ),
    (
        {"type": "video_url", "video_url": {"url": "r2://bucket/a"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}},
        "video/mp4",
    ),
]


@pytest.mark.parametrize(("part", "expected", "mime"), PARTS)
def test_each_part_holds_its_bytes_as_services_take_them(part, expected, mime):
    def filled(request):
        marked = MediaSettings().marked(request, OWN)
        assert len(references_in(marked)) == 1
        assert marked == request  # by value: only the names know more
        return with_bytes(marked, lambda _: Encoded(Kind(mime), f"data:{mime};base64,AA=="))

    assert filled(chat(part)).messages[1].content == (expected,)
    raw = {"input": [{"role": "user", "content": [part]}, {"type": "function_call_output", "output": "x"}]}
    assert filled(RawRequest("m", raw, path="responses")).input["input"][0]["content"] == [expected]
    tool = {"input": [{"type": "function_call_output", "output": [part]}]}
    assert filled(RawRequest("m", tool, path="responses")).input["input"][0]["output"] == [expected]


def test_a_models_own_input_has_them_by_field():
    request = RawRequest("@cf/openai/whisper", {"audio": "r2://bucket/a.mp3", "task": "translate"})
    marked = MediaSettings().marked(request, OWN)
    assert [one.medium for one in references_in(marked)] == ["audio"]
    filled = with_bytes(marked, lambda _: Encoded(Kind("audio/mpeg"), "data:audio/mpeg;base64,AA=="))
    assert filled.input == {"audio": "data:audio/mpeg;base64,AA==", "task": "translate"}


def test_settings_and_references_travel_to_other_processes():
    settings = MediaSettings(("r2://other/",), ("bucket",), 5)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(pickle.loads(pickle.dumps(settings)))
    (one,) = references_in(MediaSettings().marked(image("r2://bucket/a.png"), OWN))
    there = pickle.loads(pickle.dumps(one))
    assert (there, there.store, there.key, there.medium) == (one, OWN, "a.png", "image")
