"""The rates that Cloudflare publishes: what a model's calls are held to where the caller sets nothing.

Source: developers.cloudflare.com/workers-ai/platform/limits (page of 2026-09-17), requests a minute by task, for
each account and model. It publishes no token rate. Of the frontier text models (Kimi K2.6, Kimi K2.7 Code, GLM-5.2)
Cloudflare's changelog of 2026-08-07 has 20 requests a minute, and 50 where AI Gateway credits pay for them, which
cannot be seen from here: with credits, set ``--rpm 50``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmdo.backends.limits.rates import Rates
from llmdo.backends.workers_ai.models import is_others
from llmdo.settings.environment import PUBLIC_API, MissingSettings, cloudflare_account

# The first pattern found in the model's name counts: the list of models, which names the task, costs a call.
_WORKERS_AI: Sequence[tuple[re.Pattern[str], float]] = tuple(
    (re.compile(pattern), rpm)
    for pattern, rpm in (
        # Frontier text models; K2.5 is switched off, and what asks for it is answered by K2.6.
        (r"/(kimi-k2\.5|kimi-k2\.6|kimi-k2\.7-code|glm-5\.2)$", 20),
        (r"/bge-large-en", 1500),
        (r"/bge-(?!reranker)|embed", 3000),  # text embeddings
        (r"/bge-reranker|/distilbert", 2000),  # text classification
        (r"/bart-", 1500),  # summarization
        (r"/m2m100|/indictrans", 720),  # translation
        (r"/whisper|/nova-|/flux$", 720),  # automatic speech recognition
        (r"/llava|/uform", 720),  # image to text
        (r"/resnet|/detr-", 3000),  # image classification, object detection
        (r"stable-diffusion|/flux-|/dreamshaper|/lucid-origin|/phoenix", 720),  # text to image
        (r"", 300),  # text generation
    )
)


def published_rates(model: str) -> Rates:
    """What Cloudflare publishes for a model; no limit at another base URL, and for models of others."""
    try:
        base_url = cloudflare_account().base_url
    except MissingSettings:  # the call itself will say so
        return Rates()
    if base_url.rstrip("/") != PUBLIC_API or is_others(model):
        return Rates()
    return Rates(rpm=next(rpm for pattern, rpm in _WORKERS_AI if pattern.search(model)))
