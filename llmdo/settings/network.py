"""How other machines are reached: proxies and certificates, by the variables of curl, requests and OpenSSL.

Each library reads them in its own way (in NO_PROXY, aiohttp does not support CIDR, nor httpx ports, and their
variables for certificates differ), so all of them get what is determined here.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

_PROXY_SCHEMES = ("http", "https")
# The first one that is set counts; SSL_CERT_FILE is OpenSSL's.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
CA_REMEDY = "set SSL_CERT_FILE to a PEM file with the CA's certificate, such as that of your company's proxy"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str) -> str | None:
    """The HTTP proxy for a URL: HTTPS_PROXY or HTTP_PROXY by its scheme, else ALL_PROXY, in upper or lower case; None
    for hosts in NO_PROXY. Raises ValueError, without the proxy's password, if it cannot be used.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = (proxies.get(parts.scheme) or proxies.get("all") or "").strip()
    if not proxy or not parts.hostname or _excepted(parts, proxies.get("no") or ""):
        return None
    name = f"{parts.scheme.upper()}_PROXY" if proxies.get(parts.scheme) else "ALL_PROXY"
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    if scheme.startswith("socks"):
        raise ValueError(
            f"{name} names a SOCKS proxy, which is not supported: name an HTTP proxy, or put {parts.hostname} into "
            "NO_PROXY to reach it directly"
        )
    try:
        whole = urlsplit(proxy)
        usable = scheme in _PROXY_SCHEMES and bool(whole.hostname) and (whole.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or whole.path not in ("", "/") or whole.query or whole.fragment:
        raise ValueError(
            f"{name} cannot be used: write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with special characters "
            "of the password percent-encoded"
        )
    return proxy


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, by its loopback address or as localhost."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def ca_file() -> str | None:
    """The file of certificates to trust instead of the usual ones: SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE
    or AWS_CA_BUNDLE. Raises ValueError for one that cannot be read.
    """
    for name in _CA_VARIABLES:
        place = os.environ.get(name, "").strip()
        if place:
            if not Path(place).is_file() or not os.access(place, os.R_OK):
                raise ValueError(f"{name} names no file that can be read ({place}): name a PEM file of certificates")
            return place
    return None


def tls_context() -> ssl.SSLContext:
    """Trusts the certificates of ``ca_file``, else those of the system. Raises ValueError."""
    return _context_of(ca_file())


def _context_of(place: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=place)
    except OSError as error:
        raise ValueError(f"{place} holds no certificates ({error}): name a PEM file of certificates") from error


def httpx_settings(url: str) -> dict[str, Any]:
    """How an httpx.Client reaches a URL. Raises ValueError."""
    own = ca_file() or os.environ.get("SSL_CERT_DIR")
    return {"proxy": proxy_for(url), "verify": tls_context() if own else True, "trust_env": False}


def is_untrusted(reason: str) -> bool:
    """Whether a library's message about a failed connection is about an untrusted certificate."""
    return "certificate verify failed" in reason.lower().replace("_", " ")


def network_problems(url: str) -> list[str]:
    """Problems of the settings by which a URL is reached, one sentence each."""
    problems = []
    checks: tuple[Callable[[], object], ...] = (lambda: proxy_for(url), _check_certificates)
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    return problems


def _check_certificates() -> None:
    """Raises ValueError."""
    if place := ca_file():
        _read_once(place, Path(place).stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_once(place: str, _changed_ns: int) -> None:
    """Settings are checked for each file of a run, and reading the usual certificates takes 20 ms."""
    _context_of(place)


def _excepted(parts: SplitResult, no_proxy: str) -> bool:
    host = (parts.hostname or "").rstrip(".")
    try:
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return False
    return any(_covers(entry.lower(), host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY names a host: ``*``, a name with its subdomains, an address, a CIDR; with a port."""
    entry = entry.partition("://")[2] or entry
    if entry == "*":
        return True
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return _is_in(host, network)
    named, colon, number = entry.rpartition(":")
    if colon and number.isdecimal():
        return port == int(number) and _covers(named, host, None)
    name = entry.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _is_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
