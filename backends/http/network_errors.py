"""What failures of the network mean: aiohttp's errors as ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from llmdo.backends.errors import CallTimeout, ConnectionFailed, ModelError, StopRun, Unauthorized
from llmdo.settings.network import CA_REMEDY

PROXY_WANTS_KEY = 407


def network_errors(url: URL | str) -> AbstractContextManager[None]:
    """Turns what aiohttp raises into CallTimeout or ConnectionFailed, which states whether anything was sent; and into
    StopRun where no call can get through: a certificate that is not trusted, a proxy that wants a password.
    """
    return _NetworkErrors(url)


@dataclass(slots=True)  # not by contextlib.contextmanager, whose generator costs 2 µs each time
class _NetworkErrors:
    url: URL | str

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, aiohttp.ClientError | OSError):
            raise _meaning(self.url, error) from error


def _meaning(url: URL | str, error: aiohttp.ClientError | OSError) -> ModelError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(url, error)
    if isinstance(error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError):
        return _not_by_proxy(url, error)
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError):
        if "WRONG_VERSION_NUMBER" in str(error):
            text = f"{_host(url)} does not speak TLS there: write http:// in the base URL, or name another port"
            return StopRun(text)
        return ConnectionFailed(_sentence(url, "could not be reached", error), lost=False)
    if isinstance(error, TimeoutError):
        text = (
            f"{_host(url)} sent nothing for as long as a call may take: raise the call timeout, or ask for fewer tokens"
        )
        return CallTimeout(text)
    # A kept connection that was closed meanwhile: the request did not go out whole, and cannot be billed.
    unsent = isinstance(error, aiohttp.ClientConnectionResetError) and "Cannot write" in str(error)
    return ConnectionFailed(_sentence(url, "broke the connection off", error), lost=False if unsent else None)


def refused_by_proxy() -> Unauthorized:
    """The proxy wants a password, or another one."""
    text = "the proxy wants a user and a password: write HTTPS_PROXY or HTTP_PROXY as http://USER:PASSWORD@HOST:PORT"
    return Unauthorized(text, status=PROXY_WANTS_KEY)


def _untrusted(url: URL | str, error: aiohttp.ClientConnectorCertificateError) -> StopRun:
    inner = error.certificate_error
    why = getattr(inner, "verify_message", "") or str(inner)
    return StopRun(f"the certificate of {_host(url)} is not trusted ({why[:200]}): {CA_REMEDY}")


def _not_by_proxy(
    url: URL | str, error: aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError
) -> ModelError:
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        what = f"the proxy {error.host}:{error.port}, by which {_host(url)} is reached, does not answer"
        remedy = "correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or name the host in NO_PROXY"
        return ConnectionFailed(f"{what} ({error.strerror}): {remedy}", lost=False)
    if error.status == PROXY_WANTS_KEY:
        return refused_by_proxy()
    text = f"the proxy does not connect to {_host(url)} (HTTP {error.status} {error.message[:200]})"
    remedy = "check that it may, or name the host in NO_PROXY"
    return ConnectionFailed(f"{text}: {remedy}", lost=False)


def _host(url: URL | str) -> str:
    return URL(url).host or str(url)


def _sentence(url: URL | str, what: str, error: Exception) -> str:
    detail = str(error) or type(error).__name__
    return f"{_host(url)} {what} ({detail[:200]}): check the network and the base URL if it stays so"
