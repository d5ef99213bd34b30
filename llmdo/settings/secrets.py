"""What must never be shown: the values of secret variables and headers, and what URLs hold besides an address."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

from llmdo.settings.environment import SECRETS_READ_BY, MissingSettings
from llmdo.settings.telemetry import OTLP_ENDPOINTS, OTLP_HEADERS, secrets_in_headers

# The last ones are the user's own: llmdo does not read them.
SECRET_VARIABLES = (
    *(name for names in SECRETS_READ_BY.values() for name in names),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *OTLP_HEADERS,
)
# URLs whose user, password and query may be secrets.
_URLS = (
    *("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "CLOUDFLARE_BASE_URL", "R2_ENDPOINT_URL", "LIVESTORE_SYNC_URL"),
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"),
    *OTLP_ENDPOINTS,
)
_USER_IN_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?([^/]+)@", re.IGNORECASE)
_TELLTALE = re.compile(r"key|token|secret|sig|pass|auth|code", re.IGNORECASE)
_header_variables: set[str] = set()  # variables whose values this process has put into headers
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Headers of HTTP itself, which users must not set.
_NOT_THEIRS = frozenset(
    """accept-encoding connection content-encoding content-length content-type expect host keep-alive te trailer
    transfer-encoding upgrade""".split()
)
_SHORTEST_SECRET = 8  # a shorter value is a placeholder, whose letters occur in ordinary words


def check_header(text: str) -> tuple[str, str]:
    """The header and the variable of ``NAME=VARIABLE``. Raises ValueError, which quotes nothing after the ``=``."""
    name, equals, variable = text.partition("=")
    name = name.strip().lower()
    if not equals or not _HEADER.fullmatch(name) or not _VARIABLE.fullmatch(variable):
        raise ValueError("write HEADER=VARIABLE, with the variable of the environment that holds the header's value")
    if name in _NOT_THEIRS or name.startswith("proxy-"):
        raise ValueError(f"the header {name} is made with each call: name another one")
    return name, variable


def header_values(headers: Iterable[str]) -> dict[str, str]:
    """The headers of ``NAME=VARIABLE`` with the variables' values, which are secrets from now on.

    Raises ValueError and MissingSettings.
    """
    found, problems = {}, []
    for name, variable in map(check_header, headers):
        found[name] = value = os.environ.get(variable, "").strip()
        _header_variables.add(variable)
        if not value:
            problems.append(f"{variable} is not set, and the header {name} needs it: export it in the environment")
        elif not all(" " <= c <= "~" for c in value):
            problems.append(f"{variable} has a line break or a special character in it: copy it again")
    if problems:
        raise MissingSettings(problems)
    return found


def without_secrets(text: str) -> str:
    """A text with ``<NAME>`` in place of the value of each secret variable, also as a URL or JSON would write it.

    For services' messages: some echo a request with its headers.
    """
    for name, secret in _hidden():
        text = struck_out(text, secret, name)
    return text


def struck_out(text: str, secret: str, name: str) -> str:
    """A text with ``<name>`` in place of a secret, unless that is short."""
    if len(secret) >= _SHORTEST_SECRET:
        for form in _forms(secret):
            text = text.replace(form, f"<{name}>")
    return text


def values_in(document: object) -> Iterator[str]:
    """The texts and numbers of a JSON document, at any depth; the names of fields are none."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield str(document)
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from values_in(value)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from values_in(value)


def secrets_in_url(url: str) -> tuple[str, ...]:
    """The secrets in a URL: its user and password, also in the form of a header, and keys in its query."""
    found = []
    plain, _, query = url.partition("?")
    if user := _USER_IN_URL.match(plain):
        name, _, password = user[1].partition(":")
        whole = f"{unquote(name)}:{unquote(password)}"
        found += [user[1], base64.b64encode(whole.encode()).decode(), password or name, unquote(password or name)]
    for pair in query.partition("#")[0].split("&"):
        name, _, value = pair.partition("=")
        if _TELLTALE.search(name):
            found += [value, unquote(value)]
    return tuple(dict.fromkeys(one for one in found if one))


def _hidden() -> Iterator[tuple[str, str]]:
    """The name and the value of everything that must not be shown."""
    for name in SECRET_VARIABLES:
        yield name, os.environ.get(name, "")
    for value in _values_in_json(os.environ.get("LIVESTORE_PAYLOAD", "")):
        yield "LIVESTORE_PAYLOAD", value
    for name in sorted(_header_variables):
        value = os.environ.get(name, "").strip()
        yield name, value
        yield name, value.rpartition(" ")[2]  # of "Bearer KEY" the key alone
    for name in OTLP_HEADERS:
        for secret in secrets_in_headers(os.environ.get(name, "")):
            yield name, secret
    for name in _URLS:
        if url := os.environ.get(name):
            for secret in secrets_in_url(url):
                yield name, secret


@lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[str, ...]:
    """A secret as it is, and as URLs, also ones inside of URLs, and JSON write it."""
    kept = ("", "!~*'()", "/")  # what Python and what JavaScript leave as it is
    once = [quote(secret, safe=safe, errors="surrogatepass") for safe in kept]
    twice = [quote(text, safe=safe) for text in once for safe in kept]
    written = [json.dumps(secret, ensure_ascii=ascii_)[1:-1] for ascii_ in (True, False)]
    return tuple(dict.fromkeys((secret, *once, *twice, *written)))


@lru_cache(maxsize=8)
def _values_in_json(text: str) -> tuple[str, ...]:
    try:
        return tuple(values_in(json.loads(text))) if text else ()
    except (ValueError, RecursionError):
        return ()
