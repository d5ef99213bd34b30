"""R2's S3 API over HTTP: signed requests, retries, and whether a reply is R2's."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit
from xml.etree import ElementTree

import certifi
from urllib3 import HTTPConnectionPool, PoolManager, ProxyManager, Retry, Timeout, make_headers
from urllib3.exceptions import HTTPError

from llmdo.settings.clock import elapsed
from llmdo.settings.environment import MissingSettings, R2Access
from llmdo.settings.network import ca_file, network_problems, proxy_for, tls_context
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.r2_connections import R2Reply, connection_class
from llmdo.storage.objects.r2_errors import NOT_R2, TORN, R2Refused, Unaskable, Unreachable
from llmdo.storage.objects.sigv4 import Signer, encode_query

ATTEMPTS = 8  # waits about 3 s in all for 5xx and network errors, 35 s for 429 (one write a second to a key)
_MAX_WAIT = 20.0  # seconds
_TRANSIENT = (429, 500, 502, 503, 504)
_TRANSIENT_CODES = ("ClientDisconnect", "RequestTimeout", NOT_R2, TORN)  # R2 lost the request on its way, or the reply
_TIMEOUT = Timeout(connect=10, read=60)  # seconds

# More than all threads that may be in a call at once: with chats 64 for conversations, 32 for events, 16 that read the
# log, 32 of a ledger in R2, and some of Beam's; with files 32 that open them, and 16 for each further step. Connections
# are opened as they are needed.
CONNECTIONS = 256

_BUCKET = re.compile(r"[a-zA-Z0-9.\-_]{1,255}")
_HOST = re.compile(r"[a-zA-Z0-9.\-_:]+")  # also an address of IPv6
_HEADER = re.compile(r"[ -~]*")
_PORTS = {"http": 80, "https": 443}
_NOTHING: Mapping[str, str] = {}
_NO_RETRIES = Retry(total=False)

_clients: dict[tuple[int, R2Access], R2Client] = {}
_clients_lock = threading.Lock()

# What a success must be like, or the code of what it is.
Check = Callable[[R2Reply], str | None]


def has_etag(reply: R2Reply) -> str | None:
    """The replies to reads and writes of objects, and of parts."""
    return None if "etag" in reply.headers else NOT_R2


def holds(name: str) -> Check:
    """The replies whose body is an XML element of this name."""
    start, whole = f"<{name}".encode(), re.compile(rf"(</{name}>|<{name}[^>]*/>)\s*\Z".encode())

    def check(reply: R2Reply) -> str | None:
        if whole.search(reply.data):
            return None
        return TORN if start in reply.data else NOT_R2

    return check


def any_success(reply: R2Reply) -> str | None:
    """The replies to which R2 adds nothing but a status."""
    return NOT_R2 if _is_page(reply) else None


class R2Client:
    """Calls one endpoint with one key. Thread-safe; makes no request before the first call.

    Raises InvalidLocation for an endpoint that is not a URL, and ValueError for settings of proxies or certificates
    that cannot be used. The settings of AWS's own tools (profiles, files, AWS_… variables) do not apply to R2.
    """

    def __init__(self, access: R2Access) -> None:
        parts = _usable(access.endpoint)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
        if parts.port and parts.port != _PORTS[parts.scheme]:
            host += f":{parts.port}"
        self._endpoint = f"{parts.scheme}://{host}"  # without a user or a password
        self._root = quote(unquote(parts.path.rstrip("/")), safe="/~")
        proxy = proxy_for(access.endpoint)
        self._pool = _pool(self._endpoint, proxy)
        # A proxy for plain HTTP is asked for a whole URL.
        self._before_path = self._endpoint if proxy and parts.scheme == "http" else ""
        self._host = host
        self._signer = Signer(access.key_id, access.secret, host)
        self._dated = "", 0.0  # the newest reply's Date, and when it came

    def now(self) -> float:
        """R2's clock by the Date of its newest reply, else this machine's: seconds since 1970."""
        date, came = self._dated
        try:
            return parsedate_to_datetime(date).timestamp() + elapsed() - came
        except ValueError:
            return time.time()

    def call(
        self,
        check: Check,
        method: str,
        bucket: str,
        key: str | None = None,
        query: Mapping[str, str] = _NOTHING,
        headers: Mapping[str, str] = _NOTHING,
        body: bytes = b"",
        *,
        streamed: bool = False,
    ) -> R2Reply:
        """Makes a call until it succeeds, ATTEMPTS times at most.

        Args:
            check: tells a success from what only looks like one.
            key: None for the bucket itself.
            query: parameters, not encoded.
            headers: with names in lower case.
            streamed: the body is not read yet; the reply holds a connection until it is read or closed.

        Raises R2Refused, Unaskable and Unreachable.
        """
        path = self._path(bucket, key)
        parameters = encode_query(query)
        if not all(_HEADER.fullmatch(value) for value in headers.values()):
            raise Unaskable("metadata has to be printable ASCII")
        attempt = 1
        while True:
            try:
                return self._once(check, method, path, parameters, headers, body, streamed=streamed)
            except R2Refused as refused:
                scale = 1.0 if refused.status == 429 else 0.05
                if attempt == ATTEMPTS or not _passes(refused):
                    raise
            except HTTPError as error:
                scale = 0.05
                if attempt == ATTEMPTS:
                    raise Unreachable(f"{self._endpoint}: {error}") from error
            time.sleep(random.random() * min(scale * 2.0 ** (attempt - 1), _MAX_WAIT))  # noqa: S311  jitter, no secret
            attempt += 1

    def _once(
        self,
        check: Check,
        method: str,
        path: str,
        parameters: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        streamed: bool,
    ) -> R2Reply:
        signed = self._signer.headers(method, path, parameters, headers, body)
        reply: R2Reply = self._pool.urlopen(
            method,
            f"{self._before_path}{path}?{parameters}" if parameters else f"{self._before_path}{path}",
            body,
            {"host": self._host, **signed},
            retries=_NO_RETRIES,
            redirect=False,
            assert_same_host=False,
            timeout=_TIMEOUT,
            preload_content=not streamed,
            decode_content=False,
        )
        self._dated = reply.headers.get("date", ""), elapsed()
        problem = check(reply) if reply.status < 300 else ""
        if problem is None:
            return reply
        if problem:
            reply.close()  # a stream holds a connection
            raise R2Refused(500, problem, "a success without what R2 sends", page=_is_page(reply))
        raise _refusal(reply)

    def _path(self, bucket: str, key: str | None) -> str:
        if not _BUCKET.fullmatch(bucket):
            raise Unaskable(f"{bucket!r} cannot be a bucket's name")
        if key is None:
            return f"{self._root}/{bucket}"
        if not key:
            raise Unaskable("an object's key is not empty")
        try:
            return f"{self._root}/{bucket}/{quote(key, safe='/~')}"
        except UnicodeEncodeError as error:
            raise Unaskable(f"the key {key!r} is not UTF-8") from error


def r2_client(access: R2Access) -> R2Client:
    """This process's client for an endpoint and keys; a forked child gets its own sockets.

    Raises InvalidLocation for an endpoint that is not a URL, and MissingSettings for one that cannot be reached so.
    """
    key = (os.getpid(), access)
    with _clients_lock:
        if key not in _clients:
            if problems := network_problems(access.endpoint):
                raise MissingSettings(problems)
            _clients[key] = R2Client(access)
        return _clients[key]


def elements(reply: R2Reply) -> ElementTree.Element:
    """The XML of a body, without namespaces: R2's documents have one, those of some servers like it have none.

    Raises R2Refused.
    """
    try:
        root = ElementTree.fromstring(reply.data)  # noqa: S314  expat bounds how far entities may grow
    except ElementTree.ParseError as error:
        raise R2Refused(500, TORN, f"not XML: {error}", page=_is_page(reply)) from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _usable(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        if parts.scheme in _PORTS and parts.hostname and _HOST.fullmatch(parts.hostname) and parts.port != 0:
            return parts
        reason = "it is not a URL"
    except ValueError as error:
        reason = str(error)
    raise InvalidLocation(f"R2_ENDPOINT_URL={endpoint} is not usable ({reason}); set https://HOST")


def _pool(endpoint: str, proxy: str | None) -> HTTPConnectionPool:
    """Connections to an endpoint, by a proxy or not, with the certificates that are to be trusted."""
    settings: dict[str, Any] = {"maxsize": CONNECTIONS}
    if endpoint.startswith("https"):
        own = ca_file() or os.environ.get("SSL_CERT_DIR")
        settings |= {"ssl_context": tls_context()} if own else {"ca_certs": certifi.where()}
    if proxy:
        parts = urlsplit(proxy)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        secret = make_headers(proxy_basic_auth=f"{user}:{password}") if parts.username else None
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        manager: PoolManager = ProxyManager(plain, proxy_headers=secret, **settings)
    else:
        manager = PoolManager(**settings)
    pool = manager.connection_from_url(endpoint)
    pool.ConnectionCls = connection_class(secure=pool.scheme == "https")
    return pool


def _passes(refused: R2Refused) -> bool:
    return refused.status in _TRANSIENT or refused.code in _TRANSIENT_CODES


def _is_page(reply: R2Reply) -> bool:
    return "html" in reply.headers.get("content-type", "")


def _refusal(reply: R2Reply) -> R2Refused:
    """What an error says; the reply to a HEAD has a status only."""
    try:
        error = elements(reply)
    except R2Refused:
        return R2Refused(reply.status, str(reply.status), reply.reason or "", page=_is_page(reply))
    code, message = error.findtext("Code"), error.findtext("Message")
    return R2Refused(reply.status, code or str(reply.status), message or "", page=_is_page(reply))
