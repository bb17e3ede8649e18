"""The file of bearer tokens: read, reloaded when it changes, written.

One JSON object a line; empty lines and lines that begin with # are skipped:

    {"name": "ranker", "sha256": "<64 hex digits>", "scopes": ["read"], "tables": ["items*"]}

with `"rate"` (requests a second) and `"concurrency"` (requests under way) where they are limited.

A token is 256 random bits, so one SHA-256 of it is enough. Slow hashes (scrypt, argon2) hinder the
guessing of passwords, which come from a small set; nobody guesses 2^256, with a fast hash or
without. Left out on purpose: tokens that expire, which need a correct clock; revoke them.
"""

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from gatherd.errors import AlreadyExists, FailedPrecondition, NotFound, StorageError
from gatherd_server.access.callers import Caller, Grant, Scope
from gatherd_server.errors import ConfigError
from gatherd_server.storage.files import Files

logger = logging.getLogger("gatherd.tokens")

# So that scanners for leaked secrets recognize a token.
TOKEN_PREFIX: Final = "gatherd_"  # noqa: S105 - it is what every token begins with
TOKEN_BYTES: Final = 32
TOKENS_MAX: Final = 4096
FILE_BYTES_MAX: Final = 4 << 20
RATE_MAX: Final = 1e9
CONCURRENCY_MAX: Final = 65_536

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PATTERN: Final = re.compile(r"[A-Za-z0-9._*?-]{1,128}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final = frozenset(("name", "sha256", "scopes", "tables", "rate", "concurrency"))
# Tokens are found by so many bytes of their digest, and then compared.
_FOUND_BY_BYTES: Final = 8

_Tokens = dict[bytes, list[tuple[bytes, Caller]]]


class TokenFile:
    """The tokens of a file. `find` may be called from any thread, `refresh` from one."""

    def __init__(self, path: Path) -> None:
        """ConfigError when the file can't be read, has a wrong line, or has no token."""
        self.path = path
        self._state = _state_of(path)
        self._tokens = _index(_some_tokens(path), {})
        self.is_refused = False
        """Whether the file's last change was refused, so that the older tokens still hold."""

    def find(self, token: bytes) -> Caller | None:
        """The caller that holds `token`; None when it is nobody's.

        The time of a search depends only on the digest's first bytes, and nobody can choose tokens
        by their digest; the rest is compared in constant time.
        """
        digest = hashlib.sha256(token).digest()
        for known, caller in self._tokens.get(digest[:_FOUND_BY_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return caller
        return None

    def refresh(self) -> None:
        """Read the file again if it changed. A wrong or unreadable one changes only the log.

        Nor does one without a token, which would revoke all tokens: a file is seldom emptied for
        that, and rather because a disk is full or a secret isn't mounted yet.

        A token whose line is the same keeps its caller and the caller's counts; the callers of all
        others are revoked.
        """
        state = _state_of(self.path)
        if state == self._state:
            return
        self._state = state
        try:
            read = _some_tokens(self.path)
        except ConfigError as error:
            self.is_refused = True
            logger.error(  # noqa: TRY400 - what is wrong is all in the message
                "the tokens stay as they were: %s", error
            )
            return
        self.is_refused = False
        old = {digest: caller for entries in self._tokens.values() for digest, caller in entries}
        self._tokens = _index(read, old)
        kept = {caller for entries in self._tokens.values() for _, caller in entries}
        for caller in old.values():
            caller.is_revoked = caller not in kept
        logger.info("%s was read again: %d tokens", self.path, len(read))


def _some_tokens(path: Path) -> dict[bytes, Grant]:
    """As `read_tokens`, but ConfigError when there is no token."""
    found = read_tokens(path)
    if not found:
        raise ConfigError(
            f"tokens {path} has no token, so nobody could be answered; "
            f"`gatherd token NAME --tokens {path} --scope read --table '*'` makes one"
        )
    return found


def _index(read: dict[bytes, Grant], old: dict[bytes, Caller]) -> _Tokens:
    tokens: _Tokens = {}
    for digest, grant in read.items():
        caller = old.get(digest)
        if caller is None or caller.grant != grant:
            caller = Caller(grant)
        tokens.setdefault(digest[:_FOUND_BY_BYTES], []).append((digest, caller))
    return tokens


def _state_of(path: Path) -> tuple[int, ...]:
    """A value that changes with the file, also when a symbolic link leads to another one."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def read_tokens(path: Path) -> dict[bytes, Grant]:
    """The grant of each token's SHA-256. ConfigError naming the line that is wrong."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no token file {path}; `gatherd token NAME --tokens {path}` makes it"
        ) from None
    except OSError as error:
        raise ConfigError(f"tokens {path} can't be read: {error.strerror or error}") from None
    if mode & 0o002:
        raise ConfigError(f"tokens {path} can be written by everybody; take that away: chmod o-w")
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"tokens {path} has more than {FILE_BYTES_MAX} bytes")
    found: dict[bytes, Grant] = {}
    names: set[str] = set()
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            digest, grant = _read_line(line)
        except ValueError as error:
            raise ConfigError(f"tokens {path}, line {number}: {error}") from None
        if grant.name in names or digest in found:
            raise ConfigError(f"tokens {path}, line {number}: {grant.name!r} is there twice")
        names.add(grant.name)
        found[digest] = grant
        if len(found) > TOKENS_MAX:
            raise ConfigError(f"tokens {path} has more than {TOKENS_MAX} tokens")
    return found


def _read_line(line: bytes) -> tuple[bytes, Grant]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it isn't JSON") from None
    if not isinstance(entry, dict):
        raise ValueError("it isn't a JSON object")  # noqa: TRY004 - the line is wrong, not the caller
    if unknown := sorted(entry.keys() - _FIELDS):
        raise ValueError(f"{unknown[0]!r} is no field; there are {', '.join(sorted(_FIELDS))}")
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("sha256 has to be 64 hex digits, in lower case")
    scopes: Any = entry.get("scopes")
    tables: Any = entry.get("tables")
    if not _is_list_of_str(scopes) or not _is_list_of_str(tables):
        raise ValueError("scopes and tables have to be lists of strings")
    return bytes.fromhex(digest), make_grant(
        entry.get("name"), scopes, tables, entry.get("rate"), entry.get("concurrency")
    )


def make_grant(
    name: object, scopes: list[str], tables: list[str], rate: object, concurrency: object
) -> Grant:
    """A grant of these values. ValueError naming the first that is wrong."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("name takes 1 to 128 of A-Z a-z 0-9 _ . -, not . or - at first")
    known = [scope.value for scope in Scope]
    if not scopes or (wrong := [one for one in scopes if one not in known]):
        raise ValueError(f"{wrong[0] if scopes else 'none'!r} is no scope; there are {known}")
    for pattern in tables:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{pattern[:128]!r} is no pattern of tables, as 'items*' is")
    if not tables and scopes != [Scope.METRICS.value]:
        raise ValueError("tables is empty: give patterns, as 'items*', or '*' for every table")
    if rate is not None and not (
        isinstance(rate, int | float)
        and not isinstance(rate, bool)
        and math.isfinite(rate)
        and 0 < rate <= RATE_MAX
    ):
        raise ValueError(f"rate is requests a second, above 0 and at most {RATE_MAX:g}")
    if concurrency is not None and not (
        isinstance(concurrency, int)
        and not isinstance(concurrency, bool)
        and 0 < concurrency <= CONCURRENCY_MAX
    ):
        raise ValueError(f"concurrency is a number of requests, 1 to {CONCURRENCY_MAX}")
    found = frozenset(map(Scope, scopes))
    return Grant(name, found, tuple(tables), rate and float(rate), concurrency)


def _is_list_of_str(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def add_token(path: Path, grant: Grant, files: Files | None = None) -> str:
    """Draw a token, enter its hash for `grant`, durably, and return the token, which isn't kept.

    A missing file is made, for its owner alone. AlreadyExists for a name that is taken, ConfigError
    when the file's contents are wrong.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    entry: dict[str, Any] = {
        "name": grant.name,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "scopes": sorted(scope.value for scope in grant.scopes),
        "tables": list(grant.tables),
    }
    limits = {"rate": grant.rate, "concurrency": grant.concurrency}
    entry |= {name: value for name, value in limits.items() if value is not None}
    with _rewritten(path, files or Files()) as lines:
        if any(_name_of(line) == grant.name for line in lines):
            raise AlreadyExists(
                f"there is a token {grant.name!r} in {path}; choose another name, or --revoke it"
            )
        lines.append(json.dumps(entry))
    return token


def revoke_token(path: Path, name: str, files: Files | None = None) -> None:
    """Remove the token called `name` from the file, durably. NotFound when it isn't there.

    FailedPrecondition when it is the only one, because no server takes a file without tokens.
    """
    with _rewritten(path, files or Files()) as lines:
        kept = [line for line in lines if _name_of(line) != name]
        if len(kept) == len(lines):
            raise NotFound(f"there is no token {name!r} in {path}")
        if all(_name_of(line) is None for line in kept):
            raise FailedPrecondition(
                f"{name!r} is the only token in {path}, and servers go on with their tokens when "
                "the file has none; make another one first, as `gatherd token NAME` does, then "
                "revoke this one, or stop the server"
            )
        lines[:] = kept


def _name_of(line: str) -> str | None:
    if not line.strip() or line.lstrip().startswith("#"):
        return None
    return _read_line(line.encode())[1].name


@contextmanager
def _rewritten(path: Path, files: Files) -> Iterator[list[str]]:
    """The file's lines, to be changed; then they replace the file at once, or nothing changes.

    The lock is on the folder, because each change makes a new file.
    """
    path = path.resolve()
    with ExitStack() as stack:
        with _refused(f"tokens {path}"):
            stack.enter_context(files.shared_folder(path.parent, exclusive=True, waits=True))
        with _refused(f"tokens {path} can't be written"):
            is_there = path.exists()
            if is_there:
                read_tokens(path)
            lines = path.read_text().splitlines() if is_there else []
            mode = path.stat().st_mode & 0o777 if is_there else 0o600
            yield lines
            files.replace(path, "".join(f"{line}\n" for line in lines).encode(), mode=mode)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise ConfigError with `what` and the reason, in place of the file system's error."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror or error}") from None
    except StorageError as error:
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
        raise ConfigError(f"{what}: {why}") from None
