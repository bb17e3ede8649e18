"""The `gatherd` command: the group of all commands, and `gatherd serve`."""

import logging
import os
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from gatherd_server.build import this_build
from gatherd_server.cli.backups import backup, backups, restore
from gatherd_server.cli.bench import bench
from gatherd_server.cli.creating import create
from gatherd_server.cli.describing import info, ping
from gatherd_server.cli.exporting import export
from gatherd_server.cli.importing import import_table, publish
from gatherd_server.cli.inspecting import plan, verify
from gatherd_server.cli.kernels import kernels
from gatherd_server.cli.keys import keys
from gatherd_server.cli.looking_up import lookup, tables
from gatherd_server.cli.snapshots import snapshots
from gatherd_server.cli.tokens import token
from gatherd_server.cli.top import top
from gatherd_server.cli.updates import apply_gradients, assign, scatter_add
from gatherd_server.cli.verbs import Verbs
from gatherd_server.cli.versions import delete, rollback, set_optimizer, snapshot, versions
from gatherd_server.observe.logs import configure_logging
from gatherd_server.processes.descriptors import raise_limit
from gatherd_server.processes.supervisor import Addresses, Supervisor
from gatherd_server.settings import ServeSettings, load_settings


def _print_version(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    """Asked for only here, because in a checkout it starts git."""
    if given and not ctx.resilient_parsing:
        click.echo(str(this_build()))
        ctx.exit()


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and the commit, and exit.",
)
def cli() -> None:
    """Serve embedding tables over the network as if they were local arrays.

    \b
    Serve a file where it lies, then look rows 4 and 20 up:
        gatherd serve words=vectors.npy
        gatherd lookup words 4 20
    \b
    Keep tables in a data dir:
        gatherd import words vectors.npy --data-dir ./data
        gatherd create items --rows 1000000 --dim 64 --init uniform --data-dir ./data
        gatherd serve --data-dir ./data --workers 2
    """
    raise_limit()


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for every field of ServeSettings except `tables`, which are arguments."""
    for name, field in reversed(ServeSettings.model_fields.items()):
        if name == "tables":
            continue
        flag = "--" + name.replace("_", "-")
        extra: dict[str, Any] = {"default": None, "help": field.description}
        annotation: Any = field.annotation
        if annotation is bool:
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        elif getattr(annotation, "__origin__", None) is tuple:
            extra["multiple"] = True
        elif isinstance(annotation, type) and issubclass(annotation, Enum):
            extra["type"] = click.Choice([member.value for member in annotation])
        elif annotation == Path | None:
            extra["type"] = click.Path(path_type=Path)
        elif annotation in (int, float):
            extra["type"] = annotation
        if field.default not in (None, (), False):
            shown = field.default.value if isinstance(field.default, Enum) else field.default
            extra["help"] += f"  [default: {shown}]"
        command = click.option(flag, name, **extra)(command)
    return command


@cli.command()
@click.argument("tables", nargs=-1, metavar="[NAME=FILE[#TENSOR]]...")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="TOML file with any of these settings; GATHERD_CONFIG names one too.",
)
@_setting_options
def serve(config: Path | None, **options: Any) -> None:
    """Answer lookups over HTTP and gRPC until stopped.

    \b
    Files are mapped, never copied or converted:
        gatherd serve words=vectors.npy emb=model.safetensors#embeddings.weight
    \b
    Tables of a data dir, by four processes that share one copy:
        gatherd serve --data-dir ./data --workers 4

    Every option can also be set as GATHERD_<OPTION> in the environment (GATHERD_WORKERS=4)
    or in a TOML file (workers = 4). SIGTERM or Ctrl-C drains: what was accepted is answered.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    settings = load_settings(given, config)
    configure_logging(settings.log_level, settings.log_format)
    Supervisor(
        settings,
        lambda addresses: _announce(settings, addresses),
        lambda: load_settings(given, config),
    ).run()


def _announce(settings: ServeSettings, addresses: Addresses) -> None:
    """Print the server's addresses. It serves whether or not anybody reads them."""
    try:
        _print_addresses(settings, addresses)
    except OSError as error:
        logging.getLogger("gatherd").warning("the addresses can't be printed: %s", error.strerror)
        # The rest of the buffer would fail again at the exit.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _print_addresses(settings: ServeSettings, addresses: Addresses) -> None:
    workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    click.echo(f"gatherd is ready ({workers})")
    tls = "s" if settings.tls_cert is not None else ""
    http = f"http{tls}://{addresses.http}"
    click.echo(f"  http  {http}   (docs: {http}/docs)")
    click.echo(f"  grpc  grpc{tls}://{addresses.grpc}")
    if addresses.unix is not None:
        click.echo(f"  unix  unix://{addresses.unix}")
    if sys.stdout is not None:  # None when it was closed at the start
        sys.stdout.flush()


for command in (create, import_table, publish, plan, verify, export):
    cli.add_command(command)
for command in (tables, info, keys, lookup, scatter_add, apply_gradients, assign):
    cli.add_command(command)
for command in (versions, rollback, set_optimizer, delete, snapshot, snapshots):
    cli.add_command(command)
for command in (token, ping, bench, top):
    cli.add_command(command)
for command in (backup, backups, restore, kernels):
    cli.add_command(command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
        eval "$(gatherd completion bash)"         # in ~/.bashrc
        eval "$(gatherd completion zsh)"          # in ~/.zshrc
        gatherd completion fish > ~/.config/fish/completions/gatherd.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "gatherd", "_GATHERD_COMPLETE").source())
