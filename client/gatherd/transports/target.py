"""The server or data dir that a client's URL names.

    http://host[:port][/prefix]   https://…   Connect over TCP, with TLS
    unix:///path/to.sock                      Connect over a Unix socket
    grpc://host[:port]            grpcs://…   gRPC, with TLS
    local:/path                               a data dir on this machine

Left out on purpose: credentials in URLs (they end up in logs).
"""

import mmap
import os
import socket
import sys
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from gatherd.errors import InvalidArgument
from gatherd.transports.proxy import Proxy, find_proxy

_DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
_KNOWN = (
    "http://host:8000, https://host, grpc://host:8001, grpcs://host:8001, "
    "unix:///run/gatherd.sock and local:/data"
)
_NEEDED_BY_LOCAL = (
    (os, "pread"),
    (os, "O_PATH"),
    (socket, "AF_UNIX"),
    (mmap, "MAP_SHARED"),
    (mmap, "PROT_READ"),
    (mmap.mmap, "madvise"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """The destination of requests. `path` is the socket, the data dir or the URL's prefix."""

    url: str
    scheme: str
    host: str
    port: int
    path: str
    proxy: Proxy | None = None

    @property
    def dialled(self) -> tuple[str, int]:
        """The host and the port to connect to: the proxy's, if there is one."""
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("https", "grpcs")

    @property
    def authority(self) -> str:
        """host:port, as in a Host header."""
        if self.scheme in ("unix", "local"):
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_target(url: object, proxy: object = None) -> Target:
    """The target that `url` names, and the proxy to it; see `find_proxy`.

    InvalidArgument, which lists the known schemes, when it names none.
    """
    target = _parse(url)
    return replace(target, proxy=find_proxy(proxy, target.scheme, target.host))


def _parse(url: object) -> Target:
    if not isinstance(url, str):
        raise InvalidArgument(f"a URL is a str, not a {type(url).__name__}; known are {_KNOWN}")
    if any(not "!" <= char <= "~" for char in url) and not url.startswith(("local:", "unix:")):
        raise _bad(url, "it has characters that a URL can't have")
    scheme = url.partition(":")[0].lower()
    if scheme in ("local", "unix"):
        _check_system(url, scheme)
        return Target(url, scheme, "", 0, _path(url, scheme))
    if scheme not in _DEFAULT_PORTS or "://" not in url:
        raise _bad(url, "its scheme isn't known")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad(url, str(error)) from None
    if not host:
        raise _bad(url, "it names no host")
    if port == 0:
        raise _bad(url, "port 0 can't be connected to")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise _bad(url, "user names, queries and fragments have no meaning here")
    prefix = parts.path.rstrip("/")
    if prefix and scheme in ("grpc", "grpcs"):
        raise _bad(url, "gRPC has no path")
    return Target(url, scheme, host, port or _DEFAULT_PORTS[scheme], prefix)


def _check_system(url: str, scheme: str) -> None:
    """Refuse unix: and local: on a system that lacks what they need, such as Windows."""
    if scheme == "unix" and not hasattr(socket, "AF_UNIX"):
        raise _bad(url, "Python has no Unix sockets on this system, so take an http:// URL")
    if scheme == "local" and not all(hasattr(*needed) for needed in _NEEDED_BY_LOCAL):
        raise _bad(
            url,
            f"a data dir can be read on Linux alone, and this is {sys.platform}, so take the "
            "http:// or grpc:// URL of its server",
        )


def _path(url: str, scheme: str) -> str:
    rest = url[len(scheme) + 1 :]
    if rest.startswith("//"):
        rest = rest[2:]
        if not rest.startswith("/"):
            raise _bad(url, f"the path needs three slashes, as in {scheme}:///{rest}")
    if not rest or "\0" in rest:
        raise _bad(url, "it names no path")
    return rest


def _bad(url: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{url!r} can't be a gatherd URL: {why}; known are {_KNOWN}")
