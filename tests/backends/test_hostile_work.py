"""No line and no answer may hold up the others: hostile ones go the real way from the line to its row, by the engine.

Others are held up while the engine's thread works on one thing, and while another thread, which reads the line, keeps
Python's lock. Both are measured in CPU time of that thread, to which others add only by using up memory's bandwidth and
caches: the limits are as much higher as a piece of work that is always the same takes longer beside them, and the best
of three tries counts. Besides, a bystander must come to its turn; on a busy machine that takes longer.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import sys
import threading
import time
from contextlib import asynccontextmanager

import pytest
from multidict import CIMultiDict

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import LineError, ModelError
from llmdo.backends.http.client import Incoming, Opened
from llmdo.backends.limits.retry import Retry
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import CloudflareAccount
from llmdo.transforms.answers.rows import answer_row, failure_row
from llmdo.transforms.elements import FileVersion, Line
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

LONGEST_S = 0.25  # CPU time that the engine's thread may spend on one thing
READER_S = 0.5  # CPU time that reading a line may take in all: most of it leaves Python's lock to others every 5 ms
BYSTANDER_S = 2.0  # CPU time of the process in which a thread that wants to run must do so
SOON_S = 120.0  # until a test gives up waiting
MODEL, SERVED = "@cf/meta/llama-3.1-8b-instruct", "served"
LLAVA = "@cf/llava-hf/llava-1.5-7b-hf"
FILE = FileVersion("r2://bucket", "input/a.jsonl", "5d41", 1000)
LETTERS = "a" * 25 + "!"  # by backtracking two seconds, and twice as much for each more
EMAIL = r"^([a-zA-Z0-9])(([\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}(([a-z]{2,3})|([a-z]{2,3}[.]{1}[a-z]{2,3}))$"
JSON = "application/json"


class Recorded:
    """A transport without a network: ``answers`` by a text in the request, else an ordinary answer."""

    def __init__(self, answers):
        self.answers = answers

    async def send(self, call):
        status, kind, content = self._for(call)
        return Incoming(status, CIMultiDict({"content-type": kind}), content)

    @asynccontextmanager
    async def open(self, call):
        status, kind, content = self._for(call)

        async def pieces():
            for at in range(0, len(content), 1 << 16):
                yield content[at : at + (1 << 16)]

        yield Opened(Incoming(status, CIMultiDict({"content-type": kind})), pieces())

    async def aclose(self):
        pass

    def _for(self, call):
        return next((answer for text, answer in self.answers.items() if text in call.content), chat("fine"))


class Watch:
    """The most CPU seconds that passed while the loop, the line's reader, and a bystander did nothing else."""

    def __init__(self, engine):
        self.loop_s = self.reader_s = self.bystander_s = 0.0
        self._engine, self._over = engine, threading.Event()
        self._last = None
        self._bystander = threading.Thread(target=self._stand_by)

    def __enter__(self):
        self._engine._loop.call_soon_threadsafe(self._tick)
        self._bystander.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._bystander.join()
        last = threading.Event()
        self._engine._loop.call_soon_threadsafe(lambda: (self._tick(), last.set()))
        assert last.wait(SOON_S)

    def _tick(self):
        now = time.thread_time()
        self.loop_s = max(self.loop_s, now - (now if self._last is None else self._last))
        self._last = now
        if not self._over.is_set():
            self._engine._loop.call_later(0.005, self._tick)

    def _stand_by(self):
        last = time.process_time()
        while not self._over.is_set():
            time.sleep(0.002)
            now = time.process_time()
            self.bystander_s, last = max(self.bystander_s, now - last), now


class Yardstick:
    """How much longer work takes, in CPU time, than the same work at the best moment of this process."""

    def __init__(self):
        self._text = json.dumps("x" * 4_000_000).encode()
        self._best = min(self._measure() for _ in range(10))

    def __call__(self):
        now = self._measure()
        self._best = min(self._best, now)
        return now / self._best

    def _measure(self):
        began = time.thread_time()
        assert len(json.dumps(json.loads(self._text))) == len(self._text)
        assert sum(range(100_000))
        return time.thread_time() - began


@functools.cache
def yardstick():
    return Yardstick()


def chat(text, **more):
    message = {"role": "assistant", "content": text, **more}
    body = {"object": "chat.completion", "model": SERVED, "choices": [{"message": message, "finish_reason": "stop"}]}
    return 200, JSON, json.dumps(body).encode()


@pytest.fixture(autouse=True, scope="module")
def as_in_a_run():
    """The collector looks at no more than in a run's own process (``spare_the_collector``): other tests leave much."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def one_way(document, answers, provider, heard):
    """One hostile line between ordinary ones: how each ended, and the Watch. ``heard``: its answer is streamed."""
    transport = Recorded(answers)
    backends = {
        "workers-ai": lambda: WorkersAI(CloudflareAccount("acc", "token", "http://127.0.0.1:9"), transport),
        "openai": lambda: OpenAI(Service("openai", "http://127.0.0.1:9/v1", {}, "OPENAI_API_KEY"), transport),
    }
    engine = Engine(CallSettings(8, retry=Retry(attempts=1, refusals=1)), lambda name: backends[name]())
    defaults = Defaults(f"{provider}/{MODEL}")
    ended, all_ended = {}, threading.Event()
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [json.dumps({"prompt": f"ordinary {n}"}).encode() for n in range(6)]
    lines.insert(3, data)

    def answer(number, data):
        line = Line(FILE, number, number + len(data) + 1, data)

        def deliver(row):
            ended[number] = row
            if len(ended) == len(lines):
                all_ended.set()

        try:
            prompt = parse_prompt(data, f"id-{number}", defaults, engine.max_texts)
        except ModelError as error:
            deliver((None, error, failure_row(line, error, 0)))
            return

        def outcome(done):
            row = (
                answer_row(prompt, line, done.response, done.attempts, done.latency_s)
                if done.response
                else failure_row(line, done.error, done.attempts)
            )
            deliver((done.response, done.error, row))

        request = prompt.request
        if heard and number == 3 and isinstance(request, ChatRequest):
            request = dataclasses.replace(request, listen=lambda chunk: None)
        engine.submit(prompt.provider, request, outcome)

    try:
        engine.max_texts(provider, MODEL)  # connects
        with Watch(engine) as watch:
            for number, line in enumerate(lines):
                began = time.thread_time()
                answer(number, line)
                watch.reader_s = max(watch.reader_s, time.thread_time() - began)
            assert all_ended.wait(SOON_S), "not all lines have ended"
    finally:
        engine.close()
    return ended, watch


def ends(document, answers=None, provider="workers-ai", heard=False):
    """How a hostile line ends, if it held up nothing; the ordinary ones must be answered."""
    for last in (False, False, True):
        before = yardstick()()
        ended, watch = one_way(document, answers or {}, provider, heard)
        slower = max(before, yardstick()())
        others = [ended[number] for number in range(7) if number != 3]
        assert [(response and response.text, error) for response, error, _ in others] == [("fine", None)] * 6
        measured = (watch.loop_s, LONGEST_S), (watch.reader_s, READER_S), (watch.bystander_s, BYSTANDER_S)
        if all(took_s <= slower * most_s for took_s, most_s in measured):
            break
        held_up = f"the loop stood still for {watch.loop_s:.2f} s, a line was read for {watch.reader_s:.2f} s"
        beside = f"all work takes {slower:.2f} times as long as at best"
        assert not last, f"{held_up}, and a bystander waited for {watch.bystander_s:.2f} s; {beside}"
    response, error, row = ended[3]
    json.loads(row)
    if error is not None:
        assert isinstance(error, ModelError)
        assert "\n" not in error.message and len(error.message) < 1500
        assert "unexpected" not in error.message
    return response, error


def by(schema, **more):
    return {"prompt": "HOSTILE", "response_format": {"type": "json_schema", "json_schema": schema}, **more}


def doubling(word, leaf, times=40):
    defs = {f"a{n}": {word: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(times)}
    return {"$defs": {**defs, f"a{times}": leaf}, "$ref": "#/$defs/a0"}


def nested(times):
    schema = True
    for _ in range(times):
        schema = {"not": schema}
    return schema


def tree(deep):
    value = {}
    for _ in range(deep):
        value = {"a": value}
    return value


BRANCHING = {
    "$defs": {"n": {"anyOf": [{"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["b"]}] * 2}},
    "$ref": "#/$defs/n",
}
OBJECTS = {"items": {"enum": [{"v": n} for n in range(10_000)]}}

# A schema, an answer to it, and a part of the error's sentence, "" where it is answered.
SCHEMAS = {
    "a pattern that backtracks": ({"pattern": "^(a+)+$"}, LETTERS, "must match"),
    "a well-known pattern for e-mail": ({"pattern": EMAIL}, LETTERS, "must match"),
    "a name that backtracks": ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {LETTERS: 1},
                               "must not have"),
    "names by a pattern": ({"propertyNames": {"pattern": "^(a+)+$"}}, {LETTERS: 1}, "does not fit propertyNames"),
    "references that double, and fit": (doubling("allOf", {}), 1, "takes over 0.25 s"),
    "references that double, and do not": (doubling("anyOf", {"type": "string"}), 1, "takes over 0.25 s"),
    "references that double a few times": (doubling("anyOf", {"type": "string"}, 16), 1, "takes over 0.25 s"),
    "a tree that doubles": (BRANCHING, tree(60), "takes over 0.25 s"),
    "a reference to itself": ({"$ref": "#"}, 1, ""),
    "a long chain of references": ({"$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(2000)}
                                    | {"a2000": {}}, "$ref": "#/$defs/a0"}, 1, ""),
    "a deep schema": (nested(90), 1, ""),
    "a deep answer": ({"$ref": "#/$defs/n", "$defs": {"n": {"additionalProperties": {"$ref": "#/$defs/n"}}}},
                      tree(150), ""),
    "a long enum": ({"enum": [f"value {n}" for n in range(50_000)]}, "x", "must be one of"),
    "many alternatives": ({"oneOf": [{"const": n} for n in range(40_000)]}, "x", ""),
    "lists against lists": (OBJECTS, [{"v": 9999}] * 20_000, "takes over 0.25 s"),
    "unique items": ({"uniqueItems": True}, [{"a": n} for n in range(60_000)], ""),
    "a tiny step": ({"multipleOf": 1e-300}, 1e300, ""),
    "numbers of thousands of digits": ({"multipleOf": 7, "maximum": 10**4200}, 10**4250, "must be"),
    "a number too long": ({"type": "string"}, b"9" * 1_000_000, "number out of range"),
    "contains": ({"contains": {"pattern": "(a|a)*b"}, "minContains": 3}, ["a" * 500] * 1000, "does not fit contains"),
    "patterns by the hundred": ({"properties": {f"p{n}": {"pattern": rf"\p{{L}}{{150}}{n}"} for n in range(400)}}, {},
                                "takes over 0.25 s to read"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_holds_up_nobody(name):
    schema, answer, says = SCHEMAS[name]
    text = answer.decode() if isinstance(answer, bytes) else long_json(answer)
    response, error = ends(long_json(by(schema)).encode(), {b"HOSTILE": chat(text)})
    if name == "many alternatives":  # a matter of some ms whether it is found out in time
        assert isinstance(error, LineError)
        return
    assert (error is None) == (says == ""), error
    assert error is None or (isinstance(error, LineError) and says in error.message)
    assert response is None or response.text == text


@pytest.mark.parametrize("pattern", [r"^(?=.*\d)a", r"(a+)\1", "(?<!x)y"])
def test_a_pattern_that_cannot_be_matched_in_bounded_time_is_refused_before_it_is_paid(pattern):
    sent = []

    class Asked(Recorded):
        async def send(self, call):
            sent.append(call)
            return await super().send(call)

    engine = Engine(CallSettings(1), lambda _: WorkersAI(CloudflareAccount("a", "t", "http://127.0.0.1:9"), Asked({})))
    try:
        prompt = parse_prompt(
            json.dumps(by({"pattern": pattern})).encode(), "id", Defaults(f"workers-ai/{MODEL}"), engine.max_texts
        )
        ended, done = [], threading.Event()
        engine.submit(prompt.provider, prompt.request, lambda one: (ended.append(one), done.set()))
        assert done.wait(SOON_S)
    finally:
        engine.close()
    assert "write it without look-around such as (?=x), back-references" in ended[0].error.message
    assert sent == []


def long_json(value):
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(before)


MIB = 1 << 20
# A line, of about as much as one may hold, and a part of the error's sentence, "" where it is answered.
LINES = {
    "wrong messages": ({"messages": [1] * 300_000}, "'messages' is wrong at 0"),
    "empty messages": ({"messages": [{}] * 200_000}, "'messages' is wrong at 0"),
    "wrong parts": ({"messages": [{"role": "user", "content": [1] * 300_000}]}, "'messages' is wrong at 0.content"),
    "many parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 25_000}]}, ""),
    "many messages": ({"messages": [{"role": "user", "content": "a"}] * 25_000}, ""),
    "many fields": ({"prompt": "a", **{f"k{n}": n for n in range(70_000)}}, ""),
    "many tools": ({"prompt": "a", "tools": [{"name": "f", "parameters": {}}] * 25_000}, ""),
    "tools that are none": ({"prompt": "a", "tools": [[]] * 250_000}, ""),
    "many stops": ({"prompt": "a", "stop": ["."] * 200_000}, ""),
    "many numbers": ({"prompt": "a", "logit_bias": {str(n): n * 0.1 for n in range(40_000)}}, ""),
    "brackets": (b'{"prompt": "a", "x": ' + b"[]," .join([b"["] + [b""] * 300_000) + b"1]}", ""),
    "a deep line": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit"),
    "a long number": (b'{"prompt": "a", "seed": ' + b"9" * MIB + b"}", "number out of range"),
    "a number at the limit": (b'{"prompt": "a", "top_k": ' + b"9" * 4300 + b"}", ""),
    "a limit that is a long number": (b'{"prompt": "a", "max_tokens": ' + b"9" * 4300 + b"}", ""),
    "an image": ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "eHh4" * 250_000}},
    ]}], "model": LLAVA}, ""),
    "an image that is none": ({"prompt": "a", "image": "=" * MIB, "model": LLAVA}, "is not valid base64"),
    "a format that is a book": ({"prompt": "a", "response_format": {"type": "x" * MIB}}, "response_format is"),
    "a URL that is a book": ({"url": "x" * MIB, "body": {}}, "is not one that can be answered"),
    "a model that is a book": ({"prompt": "a", "model": "x/" * (MIB // 2)}, "write a model's name"),
    "a role that is a book": ({"messages": [{"role": "x" * MIB, "content": "a"}]}, "'messages' is wrong at 0.role"),
    "a limit that is a book": ({"prompt": "a", "max_tokens": "9" * MIB}, "write a whole number"),
    "a temperature that is a book": ({"prompt": "a", "temperature": ["x" * MIB]}, ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        (name, provider)
        for name, (document, _) in LINES.items()
        for provider in ("workers-ai", "openai")
        # The models that these lines name are Workers AI's.
        if not (provider == "openai" and isinstance(document, dict) and "model" in document)
    ],
)
def test_a_line_holds_up_nobody(name, provider):
    document, says = LINES[name]
    _, error = ends(document, provider=provider)
    assert error is None or (isinstance(error, LineError) and says in error.message), error
    if provider == "workers-ai":
        assert (error is None) == (says == ""), error


def completion(message):
    return 200, JSON, b'{"choices": [{"finish_reason": "stop", "message": ' + message + b"}]}"


def many(part, count):
    return b"[" + b",".join([part] * count) + b"]"


CALL = b'{"id": "", "function": {"name": "f", "arguments": "{"}}'
# A reply, by status, content type and content.
REPLIES = {
    "a fence of blanks": completion(json.dumps({"content": "```\n" + " " * MIB + "x"}).encode()),
    "a fence of fences": completion(json.dumps({"content": "```\n" + "\n``` " * 200_000 + "x"}).encode()),
    "a page of brackets": (500, "text/html", b"<" * (4 * MIB)),
    "a page of scripts": (500, "text/html", b"<script " * MIB),
    "a page of open scripts": (500, "text/html", b"<script>" * MIB),
    "a page of words": (400, "text/html", b"<p>a " * MIB),
    "a code of digits": (400, JSON, json.dumps({"error": {"code": "9" * 100_000, "message": "no"}}).encode()),
    "a code of digits inside": (200, JSON, json.dumps({"errors": [{"code": "9" * 100_000}]}).encode()),
    "codes in a text": (400, JSON, json.dumps({"error": {"message": "1234:" * MIB}}).encode()),
    "waits in a text": (429, JSON, json.dumps({"error": {"message": "try again in 1" * MIB}}).encode()),
    "overflows in a text": (400, JSON, json.dumps({"errors": [{"code": 5021, "message": "tokens (1" * MIB}]}).encode()),
    "nothing but brackets": (200, JSON, many(b"[]", 8 * MIB)),
    "nothing but objects": (200, JSON, many(b"{}", 8 * MIB)),
    "nothing but numbers": (200, JSON, many(b"1", 12 * MIB)),
    "nothing but names": (200, JSON, b"{" + b",".join(b'"k%d":1' % n for n in range(2 * MIB)) + b"}"),
    "a long number": completion(b'{"content": ' + b"9" * MIB + b"}"),
    "a number at the limit": completion(b'{"content": ' + b"9" * 4300 + b"}"),
    "a deep answer": completion(b'{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "one text of 25 MB": completion(json.dumps({"content": "x" * 25_000_000}).encode()),
    "parts": completion(b'{"content": ' + many(b'{"text":"a"}', 80_000) + b"}"),
    "calls": completion(b'{"content": null, "tool_calls": ' + many(CALL, 20_000) + b"}"),
    "empty calls": completion(b'{"content": null, "tool_calls": ' + many(b"{}", 340_000) + b"}"),
    "usage": (200, JSON, b'{"response": "a", "usage": {"prompt_tokens": ' + b"9" * 4000 + b', "neurons": '
              + b"9" * 4000 + b"}}"),
}  # fmt: skip


@pytest.mark.parametrize("provider", ["workers-ai", "openai"])
@pytest.mark.parametrize("wants_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_holds_up_nobody(name, wants_json, provider):
    line = {"prompt": "HOSTILE", **({"response_format": {"type": "json_object"}} if wants_json else {})}
    response, error = ends(line, {b"HOSTILE": REPLIES[name]}, provider)
    assert (response is None) == (error is not None)


def event(delta):
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


PIECES = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "x"}}]}
END = event({"content": "a"}) + b"data: [DONE]\n\n"
# The bytes of a stream.
STREAMS = {
    "small events": b"data: 1\n\n" * 500_000 + END,
    "blank lines": b"\n" * (8 * MIB) + END,
    "comments": b": x\n" * (2 * MIB) + END,
    "one event of many lines": b"data: 1\n" * MIB + b"\n" + END,
    "one line without an end": b"data: " + b"x" * (32 * MIB),
    "an event of brackets": b"data: " + many(b"[]", 4 * MIB) + b"\n\n" + END,
    "a call in pieces": event(PIECES) * 40_000 + END,
    "a call in long pieces": (event({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 20_000}}]}) * 1000)
    + END,
    "calls without end": b"".join(event({"tool_calls": [{"index": n, "id": str(n)}]}) for n in range(40_000)) + END,
    "an index that is a list": event({"tool_calls": [{"index": [[1]], "id": "a"}]}) + END,
}


@pytest.mark.fast("*-openai")
@pytest.mark.parametrize("provider", ["workers-ai", "openai"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_holds_up_nobody(name, provider):
    reply = (200, "text/event-stream", STREAMS[name])
    response, error = ends({"prompt": "HOSTILE"}, {b"HOSTILE": reply}, provider, heard=True)
    assert (response is None) == (error is not None)
