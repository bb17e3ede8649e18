"""Recognizes a URL whose scheme isn't what its port speaks, and names the URL that would be.

A port of TLS closes a connection that begins without TLS, and says nothing. So the first time that
a transport's connection is closed unanswered, one more is made, to ask for TLS.
"""

import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from gatherd.transports.target import Target

PROBE_SECONDS: Final = 1.0
_WITH_TLS: Final = {"http": "https", "grpc": "grpcs"}
_WITHOUT_TLS: Final = {"https": "http", "grpcs": "grpc"}
_TO_GRPC: Final = {"http": "grpc", "https": "grpcs"}
_TO_HTTP: Final = {"grpc": "http", "grpcs": "https"}
# The first bytes of an alert of TLS 1.x, and of an HTTP/2 server's SETTINGS frame.
_ALERT: Final = b"\x15\x03"
_SETTINGS: Final = re.compile(rb"\x00..\x04\x00\x00\x00\x00\x00", re.DOTALL)
# OpenSSL's and BoringSSL's names for an answer that isn't TLS.
_NO_TLS: Final = re.compile(r"WRONG_VERSION_NUMBER|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG")
# grpc's words for a server that speaks HTTP/1.1, or doesn't agree to HTTP/2.
_NO_HTTP2: Final = re.compile(r"http1\.x server|missing selected ALPN property")
_UNTRUSTED: Final = re.compile(r"CERTIFICATE_VERIFY_FAILED:? ?([\w \-']*)")
_CLOSED: Final = "Socket closed"


def answered_otherwise(target: Target, data: bytes) -> str:
    """The hint for the first bytes of an answer that isn't HTTP/1.1; "" for none."""
    if data.startswith(_ALERT):
        return _use(target, _WITH_TLS, "takes TLS")
    if _SETTINGS.match(data):
        return _use(target, _TO_GRPC, "speaks gRPC")
    return ""


def without_tls(target: Target, told: str) -> str:
    """The hint for OpenSSL's words about a server that doesn't answer in TLS; "" for none."""
    return _use(target, _WITHOUT_TLS, "doesn't take TLS") if _NO_TLS.search(told) else ""


def told_by_grpc(target: Target, told: str) -> str:
    """The hint for grpc's words about a connection that can't be made; "" for none."""
    if target.tls and _NO_TLS.search(told):
        return without_tls(target, told)
    return _use(target, _TO_HTTP, "speaks HTTP/1.1") if _NO_HTTP2.search(told) else ""


def untrusted(told: str) -> str | None:
    """OpenSSL's reason against a server's certificate in grpc's words; None if it isn't that."""
    match = _UNTRUSTED.search(told)
    return None if match is None else match[1].strip() or "it can't be verified"


def with_authority(url: str, reason: str) -> str:
    """The message about a server's certificate that isn't trusted."""
    return (
        f"{url}: {reason}; name the authority that the server's certificate is from by ca=FILE, "
        "and the server as its certificate does"
    )


@dataclass(slots=True)
class Probe:
    """Asks the target of one transport, once, whether its port takes TLS."""

    target: Target
    found: str | None = None

    def is_due(self, told: str = _CLOSED) -> bool:
        """Whether to ask after an error in these words: not of TLS, a proxy or a Unix socket."""
        is_plain = self.target.scheme in _WITH_TLS and self.target.proxy is None
        return is_plain and _CLOSED in told

    def hint(self, seconds: float) -> str:
        """The hint if the port takes TLS, else ""; takes at most `seconds`, and PROBE_SECONDS.

        The first answer is the answer from then on: an attempt that is made again asks no more.
        """
        if self.found is None:
            self.found = self._ask(seconds)
        return self.found

    def _ask(self, seconds: float) -> str:
        end = time.monotonic() + min(PROBE_SECONDS, seconds)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is sent to it
        with suppress(OSError, ValueError):
            left = max(0.01, end - time.monotonic())
            with socket.create_connection((self.target.host, self.target.port), left) as plain:
                plain.settimeout(max(0.01, end - time.monotonic()))
                with context.wrap_socket(plain, server_hostname=self.target.host):
                    return _use(self.target, _WITH_TLS, "takes TLS")
        return ""


def _use(target: Target, schemes: dict[str, str], why: str) -> str:
    scheme = schemes.get(target.scheme)
    if scheme is None:
        return ""
    rest = target.url.partition("://")[2]
    return f"; the port {why}, so the URL is {scheme}://{rest}"
