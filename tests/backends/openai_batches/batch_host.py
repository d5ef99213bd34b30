"""A service with Files and Batches, in each of the shapes that services give them, to be reached by a Wire."""

from __future__ import annotations

import json
import re

import httpx

CHAT = "/v1/chat/completions"


def chat_row(line, **more):
    """The row of a line of a batch, answered by the number of its prompt's characters."""
    text = line["body"]["messages"][-1]["content"]
    body = {
        "model": line["body"].get("model", "m"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": f"{len(text)}"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    response = {"status_code": 200, "request_id": f"req-{line['custom_id']}", "body": body}
    return {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None, **more}


def error_row(line, status, **error):
    """The row of a line that got an error."""
    response = None if status is None else {"status_code": status, "request_id": "q", "body": {"error": error}}
    return {"id": "r", "custom_id": line["custom_id"], "response": response, "error": error if status is None else None}


class BatchHost:
    """Speaks httpx. ``states``: what each look at a batch finds, the last one from then on; ``output``: rows, or bytes,
    by lines; ``errors``: those of the file of errors; ``job``: fields that each batch has besides.
    """

    def __init__(self, shape="openai", states=("completed",)):
        self.shape = shape
        self.states = list(states)
        self.output = lambda lines: [chat_row(line) for line in lines]
        self.errors = lambda lines: []
        self.job = {}
        self.now = 1_000.0
        self.files, self.batches, self.looks, self.deleted = {}, {}, {}, []
        self.created = []
        self.replies = {}  # (method, path ending) → what is replied instead

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1/").removeprefix("openai/v1/")
        for (method, pattern), reply in self.replies.items():
            if request.method == method and re.fullmatch(pattern, path):
                return reply() if callable(reply) else reply
        jobs = "batch/jobs" if self.shape == "mistral" else "batches"
        kind, _, rest = path.removeprefix("batch/").partition("/") if self.shape == "mistral" else path.partition("/")
        if request.method == "POST" and path in ("files", "files/upload"):
            return self._upload(request)
        if kind == "files":
            return self._file(request, rest)
        if path == jobs:
            return self._create(json.loads(request.content)) if request.method == "POST" else self._list(request)
        return self._batch(rest.removesuffix("/cancel"), cancel=rest.endswith("/cancel"))

    def lines(self, number=0):
        """Of the file that was uploaded as the ``number``-th."""
        return self.lines_of(list(self.files)[number])

    def lines_of(self, file):
        return [json.loads(line) for line in self.files[file][1].splitlines()] if file in self.files else []

    def _upload(self, request):
        boundary = request.headers["content-type"].partition("boundary=")[2]
        parts = request.content.split(f"--{boundary}".encode())
        assert parts[-1] == b"--\r\n"
        form = {}
        for part in parts[1:-1]:
            head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            form[re.search(rb'name="(\w+)"', head)[1].decode()] = (head.decode(), value.removesuffix(b"\r\n"))
        name = re.search('filename="([^"]+)"', form["file"][0])[1]
        assert form["purpose"][1] == (b"batch-api" if self.shape == "together" else b"batch")
        self.files[f"in-{len(self.files)}"] = name, form["file"][1]
        return httpx.Response(200, json=self._file_object(list(self.files)[-1]))

    def _file_object(self, file):
        return {"id": file, "object": "file", "filename": self.files[file][0], "bytes": len(self.files[file][1])}

    def _file(self, request, rest):
        file = rest.removesuffix("/content")
        if request.method == "DELETE":
            self.deleted.append(file)
            return httpx.Response(200, json={"id": file, "deleted": True})
        if file not in self.files:
            return httpx.Response(404, json={"error": {"message": f"No such File object: {file}"}})
        if rest.endswith("/content"):
            return httpx.Response(200, content=self.files[file][1])
        return httpx.Response(200, json=self._file_object(file))

    def _create(self, body):
        self.created.append(body)
        name = f"b/{len(self.batches)}"  # ids are not ours to choose
        self.batches[name] = {**body, "created": self.now}
        made = self._object(name, self.states[0])
        return httpx.Response(200, json={"job": made} if self.shape == "together" else made)

    def _batch(self, name, cancel):
        if name not in self.batches:
            return httpx.Response(404, json={"error": {"message": f"No batch found with id {name!r}"}})
        if cancel:
            self.states = ["cancelling", "cancelled"]
            self.looks[name] = 0
        look = self.looks[name] = self.looks.get(name, 0) + 1
        return httpx.Response(200, json=self._object(name, self.states[min(look, len(self.states)) - 1]))

    def _list(self, request):
        names = sorted(self.batches, key=lambda name: -self.batches[name]["created"])
        if self.shape == "together":
            return httpx.Response(200, json=[self._object(name, "COMPLETED") for name in names])
        query = dict(request.url.params)
        if self.shape == "mistral":
            size, start = int(query["page_size"]), int(query["page"]) * int(query["page_size"])
            page = names[start : start + size]
            return httpx.Response(200, json={"data": [self._object(n, "SUCCESS") for n in page], "total": len(names)})
        start = names.index(query["after"]) + 1 if "after" in query else 0
        page = names[start : start + int(query["limit"])]
        more = start + len(page) < len(names)
        return httpx.Response(200, json={"data": [self._object(n, "completed") for n in page], "has_more": more})

    def _object(self, name, state):
        batch = self.batches[name]
        input_file = batch["input_files"][0] if self.shape == "mistral" else batch["input_file_id"]
        made = {}
        if state.lower() in ("completed", "success", "expired", "cancelled", "failed", "timeout_exceeded"):
            lines = self.lines_of(input_file)
            for kind, rows in (("output", self.output(lines)), ("error", self.errors(lines))):
                content = rows if isinstance(rows, bytes) else b"".join(json.dumps(r).encode() + b"\n" for r in rows)
                if content:
                    self.files[f"{kind}-{name}"] = f"{kind}.jsonl", content
                    made[f"{kind}_file" if self.shape == "mistral" else f"{kind}_file_id"] = f"{kind}-{name}"
        own = {"input_files": [input_file]} if self.shape == "mistral" else {"input_file_id": input_file}
        told = {"id": name, "status": state, "created_at": int(batch["created"]), **own, **made, **self.job}
        if self.shape == "together":
            return told
        return {**told, "metadata": batch.get("metadata"), "errors": told.get("errors")}
