"""What to type next, for errors whose own message can't know the command line.

The server's messages and the SDK's name facts and arguments; here the options of this command are
known, and what was typed.
"""

import re
from contextlib import suppress
from pathlib import Path

import click

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import (
    AlreadyExists,
    BadFile,
    GatherdError,
    KeyNotFound,
    TableNotFound,
    TableRefused,
    Unauthenticated,
    Unavailable,
    VersionNotFound,
)
from gatherd_server.cli.typed import retyped, with_target

# As gatherd.transports.mismatch has it.
_URL = re.compile(r"so the URL is (\S+)$")
# As gatherd.store.mapping has it.
_ABSENT = re.compile(r"(.+) can't be opened: No such file")

_DAMAGE = re.compile(r"damaged|truncated|isn't what was")
# Commands that read a data dir, and not a file of the user's.
_READERS = frozenset({"lookup", "tables", "versions", "rollback", "publish", "snapshot", "export"})


def explained(error: GatherdError, context: click.Context) -> str:
    """The message of an error that ended a command, with the next step."""
    step = _step(error, context)
    return f"{error.message}; {step}" if step else error.message


def _step(error: GatherdError, context: click.Context) -> str:
    return _to_connect(error, context) or _to_find(error, context) or _to_replace(error, context)


def _to_connect(error: GatherdError, context: click.Context) -> str:
    """The step after an error of reaching a server, or of being let in."""
    url = _URL.search(error.message)
    if url is not None:
        return f"type: {retyped(without=('url', 'data_dir'), add=('--url', url[1]))}"
    if "by ca=FILE" in error.message:
        return f"on the command line: {retyped(without=('ca',), add=('--ca', 'FILE'))}"
    if isinstance(error, Unauthenticated) and "certificate" in error.message:
        return "on the command line: --cert FILE --key FILE"
    if isinstance(error, Unauthenticated):
        return "give the token by --token-file FILE, or in GATHERD_TOKEN; `gatherd token` makes one"
    if not isinstance(error, Unavailable) or "can't connect" not in error.message:
        return ""
    if context.params.get("data_dir") is not None:
        return f"start a server: gatherd serve --data-dir {context.params['data_dir']}"
    if context.params.get("url") is not None:
        return "start a server there with `gatherd serve`, or give another --url"
    return (
        "that is asked by default: start a server with `gatherd serve`, or give --url URL or "
        "--data-dir DIR"
    )


def _to_find(error: GatherdError, context: click.Context) -> str:
    """The step after a name, version or key that isn't there."""
    if isinstance(error, TableNotFound) and "did you mean" not in error.message:
        return f"to list tables: {with_target('tables')}"
    if isinstance(error, VersionNotFound) and error.metadata.get("table"):
        return f"to list versions: {with_target('versions', error.metadata['table'])}"
    if isinstance(error, KeyNotFound) and context.info_name == "lookup":
        return f"to get zeros instead: {retyped(add=('--missing', 'zero'), without=('missing',))}"
    if isinstance(error, BadFile) and (absent := _ABSENT.match(error.message)):
        return _files_like(Path(absent[1]))
    return ""


def _files_like(path: Path) -> str:
    with suppress(OSError):
        names = near(path.name, sorted(one.name for one in path.parent.iterdir()))
        return did_you_mean(str(path.parent / name) for name in names).removeprefix("; ")
    return ""


def _to_replace(error: GatherdError, context: click.Context) -> str:
    """The step after a name that is taken, or files that are damaged."""
    verb = context.info_name or ""
    is_unusable = isinstance(error, BadFile | TableRefused) and verb in _READERS
    if is_unusable and _DAMAGE.search(error.message):
        return f"to see all that is damaged: {with_target('verify')}"
    if isinstance(error, AlreadyExists) and verb == "import":
        return f"to replace its rows: {retyped(verb='publish')}"
    if isinstance(error, AlreadyExists) and verb == "create":
        return f"to remove it: {with_target('delete', str(error.metadata.get('table', '')))}"
    return ""
