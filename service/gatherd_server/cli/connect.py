"""Connects commands to a server: --token-file, --ca, --cert and --key; target.py has its address.

A token is never an argument, because every process on the machine can read arguments.
"""

import functools
import http.client
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from gatherd import Client
from gatherd.errors import InvalidArgument
from gatherd.transports.credentials import Credentials, no_password
from gatherd.transports.target import parse_target
from gatherd_server.processes.sockets import SERVER_SOCKET_NAME, open_beside

TOKEN_ENVIRONMENT: Final = "GATHERD_TOKEN"  # noqa: S105 - where it is, not what it is
_META: Final = "gatherd.credentials"

C = TypeVar("C", bound=Callable[..., Any])


def _keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    assert parameter.name is not None
    is_typed = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    context.meta.setdefault(_META, {})[parameter.name] = (value, is_typed)


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


def opener(url: str) -> tuple[urllib.request.OpenerDirector, str]:
    """Opens paths of a server that aren't RPCs, with the credentials of `connect`; and their root.

    InvalidArgument for a gRPC URL.
    """
    target = parse_target(url)
    shown = Credentials(target, **_given(url))
    root = url.rstrip("/")
    handlers: list[urllib.request.BaseHandler] = []
    if target.scheme in ("grpc", "grpcs"):
        raise InvalidArgument(
            f"{url} is the gRPC port; give --url http://… or https://…, the HTTP port's address"
        )
    if target.scheme in ("unix", "local"):
        is_file = target.scheme == "unix"
        handlers.append(_UnixHandler(Path(target.path) / ("" if is_file else SERVER_SOCKET_NAME)))
        root = "http://localhost"
    elif target.tls:
        context = ssl.create_default_context(cafile=shown.ca)
        if shown.cert is not None:
            context.load_cert_chain(*shown.cert, password=no_password)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    made = urllib.request.build_opener(*handlers)
    if shown.token is not None:
        made.addheaders = [("Authorization", f"Bearer {shown.token}")]
    return made, root


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket `path`."""

    def __init__(self, path: Path, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._path = path

    def connect(self) -> None:
        folder, address = open_beside(self._path.parent, self._path.name)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(address))
        finally:
            os.close(folder)


class _UnixHandler(urllib.request.HTTPHandler):
    """Opens http: URLs at a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(_UnixConnection, self._path), req)


def connect(url: str, **options: Any) -> Client:
    """A client of `url` with the credentials that the command was given.

    It tries a few times, and not until the timeout: a person may have mistyped the address, and
    waits for the answer.
    """
    return Client(url, **{"retries": COMMAND_RETRIES, **_given(url), **options})


def _given(url: str) -> dict[str, Any]:
    kept: dict[str, tuple[Path | None, bool]] = click.get_current_context().meta.get(_META, {})
    is_local, is_tls = url.startswith("local:"), url.startswith(("https://", "grpcs://"))
    # The environment's credentials are for all URLs; some have no use for them.
    useful = {"token_file": not is_local, "ca": is_tls, "cert": is_tls, "key": is_tls}
    given = {
        name: value for name, (value, is_typed) in kept.items() if is_typed or useful.get(name)
    }
    cert, key = given.get("cert"), given.get("key")
    if (cert is None) != (key is None):
        raise InvalidArgument("--cert and --key go together")
    token_file = given.get("token_file")
    token = os.environ.get(TOKEN_ENVIRONMENT) or None
    if token_file is not None or is_local:
        token = None
    return {
        "token": token,
        "token_file": token_file,
        "ca": given.get("ca"),
        "cert": (cert, key) if cert is not None and key is not None else None,
    }
