"""Workers AI's refusals: which error each code, status and text means, and what to do about it.

Codes: developers.cloudflare.com/workers-ai/platform/errors, and 3021, 3030, 3046, 4006, 5001, 5021, 5024, 5025, 5028
and 5035 as users report them. Those of AI Gateway, 2000 and above: ai-gateway/features/guardrails, and users' reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llmdo.backends.errors import (
    AccountBlocked,
    ModelError,
)
from llmdo.backends.refusals.body import Body, read_body
from llmdo.backends.refusals.cloudflare import CLOUDFLARE_REFUSALS, CODES, numbers
from llmdo.backends.refusals.meanings import Meaning, make_error
from llmdo.backends.refusals.rows import COMPATIBLE_REFUSALS

PROVIDER = "workers-ai"


_CHALLENGE = Meaning(
    AccountBlocked,
    "Cloudflare's bot protection challenges this machine's address",
    "run it from another network, or ask Cloudflare's support to allow the address",
)
_PAGE = Meaning(
    AccountBlocked,
    "a web page refuses the call, in the place of the API",
    "look for a firewall or proxy between, check CLOUDFLARE_BASE_URL, or run it from another network",
    "unclear",  # a firewall may dislike one prompt
)
# There was an answer, and it was withheld.
_ANSWERED = frozenset({2017, 3030})
_CODE_IN_TEXT = re.compile(r"\b(\d{4,5}):")


def refusal(status: int, headers: Mapping[str, str], body: object, model: str, now: float) -> ModelError:
    """The error that a reply means. ``body`` is parsed JSON, or the text of a body that is not JSON (an HTML page).

    ``now``: Unix time in seconds, for Retry-After dates and the end of a used quota.
    """
    read = read_body(body)
    if status < 300:  # an error inside a success, or in a stream: some services put the status beside it
        status = read.status or status
    found = numbers(read)
    # The first code that the table knows, else the first there is: as Cloudflare's own provider reads it.
    code = next((number for number in found if number in CODES), found[0] if found else None)
    in_text = (int(digits) for digits in _CODE_IN_TEXT.findall(read.words))
    code = code if code in CODES else next((number for number in in_text if number in CODES), code)
    return make_error(
        _meaning(status, code, read, headers),
        read,
        headers,
        now,
        model=model,
        status=status,
        code=code,
        request_id=request_id(headers),
        provider=PROVIDER,
        key="CLOUDFLARE_API_TOKEN",
        lost=True if code in _ANSWERED else None,
    )


def is_refusal(body: object) -> bool:
    """Whether a JSON body is an error although its HTTP status is 200."""
    if not isinstance(body, dict):
        return False
    if body.get("success") is False or body.get("internalCode"):
        return True
    return bool(body.get("errors") or body.get("error")) and not body.get("success") and "object" not in body


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id of a call."""
    return headers.get("cf-ai-req-id") or headers.get("cf-ray")


def _meaning(status: int, code: int | None, read: Body, headers: Mapping[str, str]) -> Meaning:
    if headers.get("cf-mitigated") == "challenge":
        return _CHALLENGE
    if status == 403 and code is None and "html" in headers.get("content-type", ""):
        return _PAGE
    return (
        CLOUDFLARE_REFUSALS.known(status, [code], read.words)
        or COMPATIBLE_REFUSALS.known_by(status, read)
        or CLOUDFLARE_REFUSALS.by_status(status)
    )
