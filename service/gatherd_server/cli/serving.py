"""`gatherd serve` and `gatherd config`: their options are the settings."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, get_origin

import click

from gatherd.errors import GatherdError
from gatherd_server.cli.exit_codes import exit_code
from gatherd_server.cli.next_steps import explained
from gatherd_server.cli.progress import Progress, is_terminal
from gatherd_server.cli.typed import FILE
from gatherd_server.configuration import (
    Configuration,
    choices_of,
    load_configuration,
    log_format_of,
    masked,
    option_of,
)
from gatherd_server.errors import ConfigError
from gatherd_server.observe.logs import LogFormat, configure_logging, line_of, stderr_in
from gatherd_server.processes.checking import check_start
from gatherd_server.processes.compiling import COMPILING
from gatherd_server.processes.compiling import Progress as Compiled
from gatherd_server.processes.supervisor import Addresses, Supervisor
from gatherd_server.settings import ServeSettings

logger = logging.getLogger("gatherd")


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """The tables as arguments, --config, and an option for every other field of ServeSettings."""
    for name, field in reversed(ServeSettings.model_fields.items()):
        if name == "tables":
            continue
        flag = option_of(name)
        extra: dict[str, Any] = {"default": None, "help": field.description}
        annotation: Any = field.annotation
        if annotation is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        elif get_origin(annotation) is tuple:
            extra["multiple"] = True
        elif choices := choices_of(annotation):
            extra["type"] = click.Choice(choices)
        elif annotation == Path | None:
            extra["type"] = click.Path(path_type=Path)
        elif annotation in (int, float):
            extra["type"] = annotation
        if field.default not in (None, (), False, ""):
            default = field.default.value if isinstance(field.default, Enum) else field.default
            extra["help"] += f"  [default: {default}]"
        command = click.option(flag, name, **extra)(command)
    command = click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="TOML file with any of these settings; GATHERD_CONFIG names one too.",
    )(command)
    return click.argument("tables", nargs=-1, type=FILE, metavar="[NAME=FILE[#TENSOR]]...")(command)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, ())}


@click.command()
@setting_options
@click.option(
    "--check", is_flag=True, help="Check settings, secrets, files and data dir, and end; see docs."
)
def serve(config: Path | None, check: bool, **options: Any) -> None:
    """Answer lookups over HTTP and gRPC until stopped.

    \b
    Files are mapped, never copied or converted:
        gatherd serve words=vectors.npy emb=model.safetensors#embeddings.weight
    \b
    Tables of a data dir, by four processes that share one copy:
        gatherd serve --data-dir ./data --workers 4
    \b
    What a start would refuse, without starting or writing anything:
        gatherd serve --config gatherd.toml --check

    Every option can also be set as GATHERD_<OPTION> in the environment (GATHERD_WORKERS=4)
    or in a TOML file (workers = 4). SIGTERM or Ctrl-C drains: what was accepted is answered.
    """
    given = _given(options)
    log_format = log_format_of(given, config)
    with _errors_in(LogFormat.TEXT if check else log_format):
        configuration = load_configuration(given, config)
        try:
            if check:
                for line in check_start(configuration.settings):
                    click.echo(line)
                return
            _run(configuration, lambda: load_configuration(given, config).settings)
        except ConfigError as error:
            raise configuration.located(error) from None


def _run(configuration: Configuration, read_settings: Callable[[], ServeSettings]) -> None:
    settings = configuration.settings
    configure_logging(settings.log_level, settings.log_format)
    with stderr_in(settings.log_format):
        is_watched = is_terminal(sys.stderr) and settings.log_format is LogFormat.TEXT
        Supervisor(
            settings,
            lambda addresses: _announce(settings, addresses),
            read_settings,
            _show_compiling if is_watched else None,
        ).run()


def _show_compiling(steps: Iterator[Compiled]) -> None:
    with Progress(COMPILING, unit="modules") as shown:
        for step in steps:
            shown.done, shown.total = step.done, step.total


@contextmanager
def _errors_in(log_format: LogFormat) -> Iterator[None]:
    """Inside, an error ends the command by a line of JSON, if that is the log's format."""
    try:
        yield
    except GatherdError as error:
        if log_format is LogFormat.TEXT:
            raise
        context = click.get_current_context()
        click.echo(line_of(explained(error, context), level=logging.CRITICAL), err=True)
        context.exit(exit_code(type(error)))


def _announce(settings: ServeSettings, addresses: Addresses) -> None:
    """Print the server's addresses. It serves whether or not anybody reads them."""
    try:
        for line in _banner(settings, addresses):
            click.echo(line)
        if sys.stdout is not None:  # None when it was closed at the start
            sys.stdout.flush()
    except OSError as error:
        logger.warning("the addresses can't be printed: %s", error.strerror)
        # The rest of the buffer would fail again at the exit.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _banner(settings: ServeSettings, addresses: Addresses) -> list[str]:
    tls = "s" if settings.tls_cert is not None else ""
    urls = {"http": f"http{tls}://{addresses.http}", "grpc": f"grpc{tls}://{addresses.grpc}"}
    if addresses.unix is not None:
        urls["unix"] = f"unix://{addresses.unix}"
    if settings.log_format is LogFormat.JSON:
        fields = {"workers": settings.workers, **urls}
        return [line_of("gatherd is ready", fields)]
    workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    docs = f"   (docs: {urls['http']}/docs)"
    shown = [f"  {name}  {url}{docs if name == 'http' else ''}" for name, url in urls.items()]
    return [f"gatherd is ready ({workers})", *shown]


@click.command("config")
@setting_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def show_config(config: Path | None, as_json: bool, **options: Any) -> None:
    """Print the settings that `gatherd serve` would have, and where each is from.

    \b
        gatherd config --config gatherd.toml
        GATHERD_WORKERS=4 gatherd config > gatherd.toml

    The output is a TOML file that --config takes, except that a password in a URL is shown as ***.
    """
    configuration = load_configuration(_given(options), config)
    click.echo(json.dumps(_document(configuration)) if as_json else _toml(configuration))


def _values(configuration: Configuration) -> dict[str, Any]:
    values = configuration.settings.model_dump(mode="json")
    return {name: masked(name, value) for name, value in values.items()}


def _document(configuration: Configuration) -> dict[str, Any]:
    return {
        name: {
            "value": value,
            "source": configuration.sources[name].kind,
            "where": configuration.sources[name].where,
        }
        for name, value in _values(configuration).items()
    }


def _toml(configuration: Configuration) -> str:
    lines = []
    for name, value in _values(configuration).items():
        # JSON's texts, numbers, booleans and lists of texts are TOML's.
        line = (
            f"# {name} =" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}"
        )
        lines.append(f"{line:40}  # {configuration.sources[name].where}")
    return "\n".join(lines)
