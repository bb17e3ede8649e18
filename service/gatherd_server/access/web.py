"""How browsers' pages and proxies reach the HTTP port: origins that may ask, and a path prefix.

Left out on purpose: cookies and other credentials of a browser. A token comes in a header that the
page's script writes, so no answer allows credentials.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gatherd_server.errors import ConfigError

ANY_ORIGIN: Final = "*"
ROOT_PATH_CHARS_MAX: Final = 256
# As browsers write one: lower case, no path, no default port.
_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ROOT_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
# A prefix that begins as a path of ours would be taken for one.
_OWN_SEGMENTS: Final = frozenset(
    ("v1", "docs", "redoc", "openapi.json", "metrics", "healthz", "readyz")
)
_OWN_SERVICES: Final = "gatherd."


@dataclass(frozen=True, slots=True)
class Web:
    """Checked by `check_web`; by default no other site's page may ask, and there is no prefix."""

    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask, or ANY_ORIGIN alone."""
    root_path: str = ""
    """The prefix at which a proxy serves this server, as /tables; "" for none."""

    def allows(self, origin: str) -> bool:
        """Whether a page of `origin` may ask."""
        return ANY_ORIGIN in self.cors_origins or origin in self.cors_origins


def check_web(origins: Sequence[str], root_path: str) -> Web:
    """The two settings, as requests are compared with them. ConfigError for a wrong one."""
    if ANY_ORIGIN in origins and len(origins) > 1:
        raise ConfigError("cors_origins: * is every origin; leave the others out, or leave out *")
    for origin in origins:
        if origin != ANY_ORIGIN:
            _check_origin(origin)
    return Web(tuple(origins), _checked_root_path(root_path))


def _check_origin(origin: str) -> None:
    shown = repr(origin[:128])
    if not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"cors_origins: {shown} isn't an origin as browsers send it: http:// or https://, a "
            "host in lower case and perhaps a port, as https://notebook.example:8888, or * for all"
        )
    parts = urlsplit(origin)
    try:
        port = parts.port
    except ValueError:
        raise ConfigError(f"cors_origins: {shown} has a port over 65535") from None
    if port == _DEFAULT_PORTS[parts.scheme]:
        raise ConfigError(
            f"cors_origins: browsers leave out port {port} of {parts.scheme}; "
            f"write {origin.rpartition(':')[0]!r}"
        )


def _checked_root_path(root_path: str) -> str:
    path = root_path.rstrip("/")
    if not path:
        return ""
    shown = repr(root_path[:128])
    if len(path) > ROOT_PATH_CHARS_MAX or not _ROOT_PATH.fullmatch(path):
        raise ConfigError(
            f"root_path: {shown} isn't a path prefix such as /tables: segments of letters, digits "
            f"and . _ ~ -, each after a slash, at most {ROOT_PATH_CHARS_MAX} characters"
        )
    segments = path[1:].split("/")
    if segments[0] in _OWN_SEGMENTS or segments[0].startswith(_OWN_SERVICES):
        raise ConfigError(
            f"root_path: {shown} begins as a path of gatherd's own, /{segments[0]}; "
            "choose another prefix"
        )
    if any(segment in (".", "..") for segment in segments):
        raise ConfigError(f"root_path: {shown} has a segment that clients leave out: . or ..")
    return path
