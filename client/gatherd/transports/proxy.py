"""The HTTP proxy that a client's connections go through, if it has one.

http:// requests are sent to it in absolute form, https:// and gRPC through a tunnel that CONNECT
opens (RFC 9112, 3.2.2 and 3.2.3). Left out on purpose: SOCKS, TLS to the proxy itself, and schemes
of authentication other than Basic.
"""

import base64
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from gatherd.errors import InvalidArgument

ENVIRONMENT: Final = "environment"
_PORT_DEFAULT: Final = 80
# The most bytes of a proxy's answer to CONNECT.
ANSWER_BYTES_MAX: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's address, and the credentials for it. Its repr has no password."""

    host: str
    port: int
    user: str | None = None
    """USER:PASSWORD, as it was in the URL."""

    def __repr__(self) -> str:
        return f"Proxy({self.authority})"

    @property
    def authority(self) -> str:
        """host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL as gRPC takes it, with the password."""
        user = f"{self.user}@" if self.user else ""
        return f"http://{user}{self.authority}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers that identify the client to the proxy."""
        if self.user is None:
            return []
        name, _, password = self.user.partition(":")
        pair = f"{unquote(name)}:{unquote(password)}".encode()
        return [("Proxy-Authorization", f"Basic {base64.b64encode(pair).decode()}")]

    def tunnel_request(self, authority: str) -> bytes:
        """The head of a request for a tunnel to `authority`."""
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def find_proxy(given: object, scheme: str, host: str) -> Proxy | None:
    """The proxy for a server: `given` is None for none, a URL, or "environment".

    With "environment", http_proxy, https_proxy and no_proxy decide, as for curl; grpc:// and
    grpcs:// use those of http and https. InvalidArgument for a URL that can't be a proxy's.
    """
    if given is None:
        return None
    if not isinstance(given, str):
        raise InvalidArgument(f"proxy is a URL or {ENVIRONMENT!r}, not a {type(given).__name__}")
    if given != ENVIRONMENT:
        if not host:
            raise InvalidArgument(f"a {scheme}: URL is on this machine, where there is no proxy")
        return _parse(given, "proxy")
    if not host or proxy_bypass(host):
        return None
    name = "https" if scheme in ("https", "grpcs") else "http"
    found = getproxies().get(name)
    return _parse(found, f"{name}_proxy") if found else None


def _parse(url: str, name: str) -> Proxy:
    # Without showing the URL, which may have a password in it.
    known = "a proxy is http://[USER:PASSWORD@]HOST[:PORT]"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgument(f"{name} can't be used: {error}; {known}") from None
    if parts.scheme != "http":
        raise InvalidArgument(f"{name} is a {parts.scheme}:// URL; {known}")
    if not host or port == 0 or not url.isascii() or any(char <= " " for char in url):
        raise InvalidArgument(f"{name} names no host and port; {known}")
    user, has_user, _ = parts.netloc.rpartition("@")
    return Proxy(host, port or _PORT_DEFAULT, user if has_user else None)
