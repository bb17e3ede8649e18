"""The one way in which commands address a server or a data dir: --url and --data-dir.

A command that asks, or changes a table, takes either (`target_options`). A command that reads or
writes the files of a data dir takes one (`data_dir_options`), as --data-dir DIR or --url local:DIR.
Both can be in the environment. The command line wins; if both are in the environment, the URL wins,
unless the command needs a data dir.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from gatherd import Client
from gatherd.errors import NotFound
from gatherd.store.catalog import CATALOG_NAME
from gatherd.transports.target import parse_target
from gatherd_server.cli.connect import connect, credential_options

DEFAULT_URL: Final = "http://127.0.0.1:8000"
URL_ENVIRONMENT: Final = "GATHERD_URL"
DATA_DIR_ENVIRONMENT: Final = "GATHERD_DATA_DIR"

Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class CommandTarget:
    """What a command was addressed to: a server's URL, or a data dir, whose URL is local:DIR."""

    url: str
    data_dir: Path | None = None

    def connect(self, **options: Any) -> Client:
        """A client with the credentials that the command was given; see `connect`.

        NotFound when the data dir isn't one.
        """
        if self.data_dir is not None:
            check_data_dir(self.data_dir)
        return connect(self.url, **options)

    @property
    def flag(self) -> tuple[str, str]:
        """The option that addresses it, for commands that messages propose."""
        if self.data_dir is not None:
            return "--data-dir", str(self.data_dir)
        return "--url", self.url


def check_data_dir(data_dir: Path) -> None:
    """NotFound unless there are tables in `data_dir`."""
    if (data_dir / CATALOG_NAME).exists():
        return
    why = "it has no catalog.json" if data_dir.is_dir() else "it isn't there"
    raise NotFound(
        f"{data_dir} is no data dir: {why}; `gatherd import` and `gatherd create` make one"
    )


def target_options(command: Command) -> Command:
    """--url, --data-dir and the options for credentials, as the parameter `target`."""

    @functools.wraps(command)
    def placed(*arguments: Any, url: str | None, data_dir: Path | None, **given: Any) -> None:
        command(*arguments, target=choose(url, data_dir), **given)

    data_dir_option = _data_dir_option("Data dir to use instead of --url; a server may have it.")
    return _url_option(
        "Server: http://, https://, grpc://, grpcs:// or unix://; local:DIR is --data-dir DIR.  "
        f"[env: {URL_ENVIRONMENT}; default: {DEFAULT_URL}]"
    )(data_dir_option(credential_options(placed)))


def data_dir_options(meaning: str) -> Callable[[Command], Command]:
    """--data-dir, or --url local:DIR, as the parameter `data_dir: Path`, which is always given."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def placed(*arguments: Any, url: str | None, data_dir: Path | None, **given: Any) -> None:
            command(*arguments, data_dir=choose_data_dir(url, data_dir), **given)

        url_option = _url_option("local:DIR is the same as --data-dir DIR.")
        return _data_dir_option(meaning)(url_option(placed))

    return decorate


def destination_options(meaning: str) -> Callable[[Command], Command]:
    """--data-dir, or --url of a server, as the parameter `target`; one has to be given."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def placed(*arguments: Any, url: str | None, data_dir: Path | None, **given: Any) -> None:
            if url is None and data_dir is None:
                raise click.UsageError(
                    "say where the table goes: --data-dir DIR, which a server may have open, or "
                    f"--url of a server; or set {DATA_DIR_ENVIRONMENT} or {URL_ENVIRONMENT}"
                )
            is_local = data_dir is not None and "url" not in _on_command_line()
            command(*arguments, target=choose(None if is_local else url, data_dir), **given)

        url_option = _url_option(
            "Server to upload to instead: http://, https://, grpc://, grpcs:// or unix://.  "
            f"[env: {URL_ENVIRONMENT}]"
        )
        return _data_dir_option(meaning)(url_option(credential_options(placed)))

    return decorate


def choose(url: str | None, data_dir: Path | None) -> CommandTarget:
    """What the two options name. UsageError when both are on the command line."""
    if url is not None and data_dir is not None:
        given = _on_command_line()
        if len(given) == 2:
            raise click.UsageError("--data-dir and --url name two things; give one of them")
        if given == {"data_dir"}:
            url = None
    if url is not None and url.startswith("local:"):
        return _local(Path(parse_target(url).path))
    if url is not None:
        return CommandTarget(url)
    return _local(data_dir) if data_dir is not None else CommandTarget(DEFAULT_URL)


def choose_data_dir(url: str | None, data_dir: Path | None) -> Path:
    """The data dir that the two options mean. UsageError when they mean none."""
    given = _on_command_line()
    if data_dir is not None and "url" not in given:
        return data_dir
    chosen = choose(url, data_dir) if url is not None else None
    if chosen is not None and chosen.data_dir is not None:
        return chosen.data_dir
    return need_data_dir(CommandTarget(url) if url is not None else None)


def addressed(target: CommandTarget, address: str | None) -> CommandTarget:
    """`target`, or that of a URL given without --url, as earlier releases took it."""
    if address is None:
        return target
    if _on_command_line():
        raise click.UsageError(
            f"{address!r} is one server or data dir, and an option names another; give one"
        )
    return choose(address, None)


def need_data_dir(target: CommandTarget | None) -> Path:
    """The data dir of `target`. UsageError when it is a server, or nothing was given."""
    if target is not None and target.data_dir is not None:
        return target.data_dir
    verb = click.get_current_context().info_name
    named = (
        "" if target is None else f"; {target.url} is a server, which has the folder for its own"
    )
    raise click.UsageError(
        f"`gatherd {verb}` works on a data dir of this machine, which a server may have open: "
        f"give --data-dir DIR, or set {DATA_DIR_ENVIRONMENT}{named}"
    )


def _local(data_dir: Path) -> CommandTarget:
    return CommandTarget(f"local:{data_dir}", data_dir)


def _on_command_line() -> set[str]:
    context = click.get_current_context()
    return {
        name
        for name in ("url", "data_dir")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _url_option(meaning: str) -> Callable[[Command], Command]:
    return click.option("--url", envvar=URL_ENVIRONMENT, metavar="URL", help=meaning)


def _data_dir_option(meaning: str) -> Callable[[Command], Command]:
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar=DATA_DIR_ENVIRONMENT,
        help=f"{meaning}  [env: {DATA_DIR_ENVIRONMENT}]",
    )
