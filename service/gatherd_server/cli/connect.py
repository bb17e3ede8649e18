"""Connects commands to a server: --url, --token-file, --ca, --cert and --key.

A token is never an argument, because every process on the machine can read arguments.
"""

import os
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gatherd import Client
from gatherd.errors import InvalidArgument
from gatherd.transports.credentials import Credentials, no_password
from gatherd.transports.target import parse_target

TOKEN_ENVIRONMENT: Final = "GATHERD_TOKEN"  # noqa: S105 - where it is, not what it is
_META: Final = "gatherd.credentials"
DEFAULT_URL: Final = "http://127.0.0.1:8000"

C = TypeVar("C", bound=Callable[..., Any])


def _keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    assert parameter.name is not None
    context.meta.setdefault(_META, {})[parameter.name] = value


COMMAND_RETRIES: Final = 3


def credential_options(command: C) -> C:
    """Options for a command that calls `connect`; they aren't among its function's parameters."""
    for name, meaning in (
        ("key", "PEM file of that certificate's key."),
        ("cert", "PEM file of a certificate, for a server that wants one of its clients."),
        ("ca", "PEM file of the authorities that the server's certificate may be from."),
        ("token_file", f"File with the token for the server; {TOKEN_ENVIRONMENT} can hold it too."),
    ):
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=click.Path(path_type=Path),
            envvar=f"GATHERD_{name.upper()}",
            callback=_keep,
            expose_value=False,
            help=meaning,
        )(command)
    return command


_url_option = click.option(
    "--url",
    default=DEFAULT_URL,
    envvar="GATHERD_URL",
    show_default=True,
    help="Server: http://, https://, grpc://, grpcs://, unix:// or local:DATA_DIR.",
)


def url_option(command: C) -> C:
    """--url, and the options for credentials."""
    return _url_option(credential_options(command))


def opener(url: str) -> urllib.request.OpenerDirector:
    """Opens paths of the HTTP server `url` that aren't RPCs, with the credentials of `connect`."""
    given = _given(url)
    shown = Credentials(parse_target(url), **given)
    handlers: list[urllib.request.BaseHandler] = []
    if url.startswith("https://"):
        context = ssl.create_default_context(cafile=shown.ca)
        if shown.cert is not None:
            context.load_cert_chain(*shown.cert, password=no_password)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    made = urllib.request.build_opener(*handlers)
    if shown.token is not None:
        made.addheaders = [("Authorization", f"Bearer {shown.token}")]
    return made


def connect(url: str, **options: Any) -> Client:
    """A client of `url` with the credentials that the command was given.

    It tries a few times, and not until the timeout: a person may have mistyped the address, and
    waits for the answer.
    """
    return Client(url, **{"retries": COMMAND_RETRIES, **_given(url), **options})


def _given(url: str) -> dict[str, Any]:
    given: dict[str, Path | None] = click.get_current_context().meta.get(_META, {})
    cert, key = given.get("cert"), given.get("key")
    if (cert is None) != (key is None):
        raise InvalidArgument("--cert and --key go together")
    token_file = given.get("token_file")
    token = os.environ.get(TOKEN_ENVIRONMENT) or None
    # The environment's token is for all URLs; a data dir has no use for it.
    if token_file is not None or url.startswith("local:"):
        token = None
    return {
        "token": token,
        "token_file": token_file,
        "ca": given.get("ca"),
        "cert": (cert, key) if cert is not None and key is not None else None,
    }
