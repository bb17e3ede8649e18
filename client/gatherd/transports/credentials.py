"""A client's token, certificate and headers, and the authorities by which it knows a server.

None of it is ever in a message, a repr or a log. Left out on purpose: a token in the URL, which
ends up in logs, and a function that returns tokens, because renewing a file does the same.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Final
from weakref import WeakMethod

from gatherd.errors import InvalidArgument
from gatherd.transports.headers import Headers, checked_headers, merged, of_block
from gatherd.transports.target import Target
from gatherd_proto.headers import AUTHORIZATION, TOKEN_CHARS_MAX

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750

Path = str | os.PathLike[str]


class Credentials:
    """One client's credentials. Safe to use from many threads."""

    def __init__(
        self,
        target: Target,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        ca: Path | None = None,
        cert: tuple[Path, Path] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The arguments of Client. InvalidArgument for one that can't be used with the URL."""
        if token is not None and token_file is not None:
            raise InvalidArgument("give a token or a token_file, not both")
        if target.scheme == "local" and (token is not None or token_file is not None):
            raise InvalidArgument("a local: client reads files, and shows nobody a token")
        if not target.tls and (ca is not None or cert is not None):
            raise InvalidArgument(
                f"ca and cert are for https:// and grpcs://; {target.url} isn't encrypted"
            )
        given: object = cert
        if given is not None and not (isinstance(given, tuple | list) and len(given) == 2):
            raise InvalidArgument("cert is a pair of files: the certificate and its key")
        self.ca = os.fspath(ca) if ca is not None else None
        self.cert = (os.fspath(cert[0]), os.fspath(cert[1])) if cert is not None else None
        self._file = token_file
        self._on_renewal: list[WeakMethod[Callable[[], None]]] = []
        self._is_untold = False
        self.token = _read(token_file) if token_file is not None else _checked(token, "token")
        """The token, which follows "Bearer "; None for none."""
        self.headers = checked_headers(headers)
        """The headers of every request, apart from the token."""
        self._metadata = self._as_metadata()

    @property
    def metadata(self) -> Headers | None:
        """The token and the headers of a call that is made now, for gRPC."""
        more = of_block()
        return merged(self._metadata or (), more) if more else self._metadata

    def _as_metadata(self) -> Headers | None:
        shown = ((AUTHORIZATION, f"Bearer {self.token}"),) if self.token is not None else ()
        return (*self.headers, *shown) or None

    def on_renewal(self, told: Callable[[], None]) -> None:
        """Call the method `told` when the token changes, as long as its object lives."""
        self._on_renewal = [known for known in self._on_renewal if known() is not None]
        self._on_renewal.append(WeakMethod(told))

    def renew(self) -> bool:
        """Read the token's file again; whether it has another token than before."""
        if self._file is None:
            return False
        token = _read(self._file)
        if token == self.token and not self._is_untold:
            return False
        self._is_untold = True  # if this is interrupted, the next call finishes it
        self.token = token
        self._metadata = self._as_metadata()
        for known in self._on_renewal:
            told = known()
            if told is not None:
                told()
        self._is_untold = False
        return True


def _read(path: Path) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(TOKEN_CHARS_MAX + 2)
    except OSError as error:
        raise InvalidArgument(f"token_file {path} can't be read: {error.strerror}") from None
    token = _checked(text.strip(), f"what is in token_file {path}")
    assert token is not None
    return token


def _checked(token: object, what: str) -> str | None:
    if token is None:
        return None
    if not isinstance(token, str) or len(token) > TOKEN_CHARS_MAX or not _TOKEN.fullmatch(token):
        # Without showing it: it is a secret.
        raise InvalidArgument(f"{what} isn't a token: 1 to {TOKEN_CHARS_MAX} of A-Z a-z 0-9 ._~+/-")
    return token


def no_password() -> str:
    """Keep OpenSSL from asking for a key's password on the terminal."""
    raise ValueError("the key has a password; keys without one are taken")
