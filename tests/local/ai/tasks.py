"""Models of the local Workers AI that neither chat nor embed: they check inputs and answer in the real ones' shapes.

The answers mean nothing: a translation is the text after its language, a picture is one pixel.
Shapes: developers.cloudflare.com/workers-ai/models, and the official client's types.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

from llmdo.local.ai.catalogue import ECHO_MODELS, LocalModel
from llmdo.local.ai.inputs import bad_input
from llmdo.local.wire import Refused


def classify(body: dict[str, Any], _: str) -> Any:
    """A sentiment; or contexts with their scores for a query, best first: the share of its words that they contain."""
    if "contexts" not in body:
        score = round(0.5 + _chance(_text(body, "text")) / 2, 6)
        return [{"label": "NEGATIVE", "score": round(1 - score, 6)}, {"label": "POSITIVE", "score": score}]
    wanted = set(_text(body, "query").lower().split())
    contexts = body["contexts"]
    if not isinstance(contexts, list) or not contexts or not all(isinstance(one, dict) for one in contexts):
        raise bad_input("Type mismatch of '/contexts', 'array' of 'object' expected")
    scores = [len(wanted & set(_text(one, "text").lower().split())) / len(wanted) for one in contexts]
    order = sorted(range(len(scores)), key=lambda number: -scores[number])[: body.get("top_k") or len(scores)]
    return {"response": [{"id": number, "score": scores[number]} for number in order]}


def translate_text(body: dict[str, Any], _: str) -> Any:
    """The text, after the requested language."""
    return {"translated_text": f"[{_text(body, 'target_lang')}] {_text(body, 'text')}"}


def summarise(body: dict[str, Any], _: str) -> Any:
    """The text's first words."""
    words = _text(body, "input_text").split()
    return {"summary": " ".join(words[: body.get("max_length") or 1024])}


def describe(body: dict[str, Any], _: str) -> Any:
    """The size of the picture."""
    return {"description": f"a picture of {len(_octets(body, 'image'))} bytes: {body.get('prompt', '')}".rstrip(": ")}


def label(body: dict[str, Any], _: str) -> Any:
    """A label and its score."""
    return [{"label": "PICTURE", "score": round(_chance(_octets(body, "image")), 6)}]


def transcribe(body: dict[str, Any], model: str) -> Any:
    """The size of the recording. The turbo model takes base64, the others an array of bytes."""
    sound = _decoded(body, "audio") if model.endswith("turbo") else _octets(body, "audio")
    words = f"a recording of {len(sound)} bytes".split()
    timed = [{"word": word, "start": float(at), "end": at + 1.0} for at, word in enumerate(words)]
    text = " ".join(words)
    vtt = f"WEBVTT\n\n00.000 --> {len(words):02}.000\n{text}"
    return {"text": text, "word_count": len(words), "vtt": vtt, "words": timed}


def paint(body: dict[str, Any], model: str) -> Any:
    """One pixel, coloured by the prompt: as base64 from newer models, as a picture from older ones."""
    picture = _pixel(hashlib.sha256(_text(body, "prompt").encode()).digest()[:3])
    return {"image": base64.b64encode(picture).decode()} if "flux" in model else picture


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise bad_input(f"required properties at '/' are '{name}'")
    return value


def _octets(body: dict[str, Any], name: str) -> bytes:
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise bad_input(f"Type mismatch of '/{name}', 'array' expected")
    try:
        return bytes(value)
    except (TypeError, ValueError) as error:
        raise bad_input(f"Type mismatch of '/{name}', numbers of 0 to 255 expected") from error


def _decoded(body: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(_text(body, name), validate=True)
    except binascii.Error as error:
        raise Refused(400, 5004, f"AiError: 5004: Invalid data for base64 input: {error}") from error


def _chance(seed: str | bytes) -> float:
    """A number from 0 to 1, always the same for a seed."""
    digest = hashlib.sha256(seed.encode() if isinstance(seed, str) else seed).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _pixel(colour: bytes) -> bytes:
    """A PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + colour)) + chunk(b"IEND", b"")


def _model(name: str, task: str, answer: Callable[[dict[str, Any], str], Any], **more: Any) -> LocalModel:
    return LocalModel(name, task, "Answered by the tests.", name, 0, answer=answer, **more)


MODELS = (
    *ECHO_MODELS,
    _model("@cf/huggingface/distilbert-sst-2-int8", "Text Classification", classify, price=(0.026, 0.0)),
    _model("@cf/baai/bge-reranker-base", "Text Classification", classify, price=(0.003, 0.0)),
    _model("@cf/meta/m2m100-1.2b", "Translation", translate_text, price=(0.342, 0.342), batch=True),
    _model("@cf/facebook/bart-large-cnn", "Summarization", summarise, able=("beta",), deprecated="2026-05-30"),
    _model("@cf/llava-hf/llava-1.5-7b-hf", "Image-to-Text", describe, able=("beta",)),
    _model("@cf/microsoft/resnet-50", "Image Classification", label),
    _model("@cf/openai/whisper", "Automatic Speech Recognition", transcribe),
    _model("@cf/openai/whisper-large-v3-turbo", "Automatic Speech Recognition", transcribe),
    _model("@cf/black-forest-labs/flux-1-schnell", "Text-to-Image", paint),
    _model("@cf/stabilityai/stable-diffusion-xl-base-1.0", "Text-to-Image", paint, able=("beta",)),
)
