"""What to type next, for errors whose own message can't know the command line.

The server's messages and the SDK's name facts and arguments; here the options of this command are
known, and what was typed.
"""

import re

import click

from gatherd.errors import (
    AlreadyExists,
    BadFile,
    GatherdError,
    KeyNotFound,
    TableNotFound,
    Unauthenticated,
    Unavailable,
    VersionNotFound,
)
from gatherd_server.cli.target import DEFAULT_URL
from gatherd_server.cli.typed import retyped, with_target

# As gatherd.transports.mismatch has it.
_URL = re.compile(r"so the URL is (\S+)$")


# Commands that read a data dir, and not a file of the user's.
_READERS = frozenset({"lookup", "tables", "versions", "rollback", "publish", "snapshot", "export"})


def explained(error: GatherdError, context: click.Context) -> str:
    """The message of an error that ended a command, with the next step."""
    step = _step(error, context)
    return f"{error.message}; {step}" if step else error.message


def _step(error: GatherdError, context: click.Context) -> str:
    verb = context.info_name or ""
    url = _URL.search(error.message)
    if url is not None:
        return f"type: {retyped(without=('url', 'data_dir'), add=('--url', url[1]))}"
    if "by ca=FILE" in error.message:
        return f"on the command line: {retyped(without=('ca',), add=('--ca', 'FILE'))}"
    if isinstance(error, Unauthenticated) and "certificate" not in error.message:
        return "give the token by --token-file FILE, or in GATHERD_TOKEN; `gatherd token` makes one"
    if isinstance(error, Unauthenticated):
        return "on the command line: --cert FILE --key FILE"
    if isinstance(error, TableNotFound) and "did you mean" not in error.message:
        return f"to list tables: {with_target('tables')}"
    if isinstance(error, VersionNotFound) and error.metadata.get("table"):
        return f"to list versions: {with_target('versions', error.metadata['table'])}"
    if isinstance(error, KeyNotFound) and verb == "lookup":
        return f"to get zeros instead: {retyped(add=('--missing', 'zero'), without=('missing',))}"
    if isinstance(error, BadFile) and verb in _READERS:
        return f"to see all that is damaged: {with_target('verify')}"
    if isinstance(error, Unavailable) and "can't connect" in error.message:
        asked = "" if context.params.get("url") else f" ({DEFAULT_URL} is what is asked by default)"
        return (
            f"start a server with `gatherd serve`, or name another by --url URL or a folder by "
            f"--data-dir DIR{asked}"
        )
    if isinstance(error, AlreadyExists) and verb == "import":
        return f"to replace its rows: {retyped(verb='publish')}"
    if isinstance(error, AlreadyExists) and verb == "create":
        name = str(error.metadata.get("table", ""))
        return f"to remove it: {with_target('delete', name)}"
    return ""
