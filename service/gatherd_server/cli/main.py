"""The command line: what a person types, and what they read."""

import importlib.metadata
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from gatherd.errors import GatherdError
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.query import ROW_POLICIES, Pooling
from gatherd_server.cli.backups import backup, backups, restore
from gatherd_server.cli.bench import bench
from gatherd_server.cli.connect import connect
from gatherd_server.cli.data_dir import open_data_dir
from gatherd_server.cli.exporting import export
from gatherd_server.cli.importing import (
    data_dir_option,
    default_vector_option,
    import_table,
    publish,
    read_default,
)
from gatherd_server.cli.inspecting import plan, verify
from gatherd_server.cli.options import optimizer_options, read_optimizer
from gatherd_server.cli.tokens import token
from gatherd_server.cli.top import top
from gatherd_server.cli.updates import (
    apply_gradients,
    assign,
    integer,
    scatter_add,
    url_option,
)
from gatherd_server.cli.versions import (
    delete,
    rollback,
    set_optimizer,
    snapshot,
    versions,
)
from gatherd_server.loaders.initializers import Initializer, initial_blocks
from gatherd_server.observe.logs import configure_logging
from gatherd_server.processes.descriptors import raise_limit
from gatherd_server.processes.supervisor import Addresses, Supervisor
from gatherd_server.settings import ServeSettings, load_settings
from gatherd_server.storage.table_writer import Block, TableFiles

ROWS_MAX = 2**48
DIM_MAX = 2**20

_DTYPES = [dtype.value for dtype in DType]


class _Group(click.Group):
    """Tells every GatherdError as one line, and keeps the commands in the order written here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GatherdError as error:
            raise click.ClickException(error.message) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("gatherd"), prog_name="gatherd")
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
    """An option for every field of ServeSettings but `tables`, which are arguments."""
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
    """Print where the server answers. It serves whether or not anybody reads that."""
    try:
        _print_addresses(settings, addresses)
    except OSError as error:
        logging.getLogger("gatherd").warning("the addresses can't be printed: %s", error.strerror)
        # What is still in the buffer would fail again at the end.
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
    if sys.stdout is not None:  # as when it was closed at the start
        sys.stdout.flush()


@cli.command()
@click.argument("name")
@click.option("--rows", type=click.IntRange(0, ROWS_MAX), required=True, help="Number of rows.")
@click.option("--dim", type=click.IntRange(1, DIM_MAX), required=True, help="Elements a row.")
@click.option(
    "--init",
    type=click.Choice([member.value for member in Initializer]),
    default="uniform",
    show_default=True,
    help="zeros; uniform in ±0.05; normal with deviation 0.05; glorot uniform.",
)
@click.option("--seed", type=click.IntRange(0), help="Same seed, same table. Random by default.")
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    default="float32",
    show_default=True,
    help="What the rows are stored in.",
)
@default_vector_option
@optimizer_options
@data_dir_option
def create(
    name: str,
    rows: int,
    dim: int,
    init: str,
    seed: int | None,
    dtype: str,
    default_vector: Path | None,
    optimizer: str | None,
    lr: float | None,
    optimizer_option: tuple[str, ...],
    data_dir: Path,
) -> None:
    """Make a new table of drawn or zero rows.

    \b
        gatherd create items --rows 1000000 --dim 64 --init glorot --seed 7 --data-dir ./data
    """
    trained = read_optimizer(optimizer, lr, optimizer_option)
    if trained is not None:
        trained.check_table(DType(dtype), rows)
    seed = secrets.randbits(63) if seed is None else seed
    padding_id = None if trained is None else trained.padding_id
    blocks = initial_blocks(Initializer(init), rows, dim, DType(dtype), seed, padding_id)
    origin = {"created": init, "seed": seed}
    default = read_default(default_vector, dim)
    table = TableFiles(
        name,
        DType(dtype),
        rows,
        dim,
        map(Block, blocks),
        origin,
        default,
        optimizer=trained,
    )
    with open_data_dir(data_dir, create=True) as opened:
        opened.add_table(table)
    byte_count = rows * dim * table.dtype.itemsize
    click.echo(f"{name}: {rows} rows of {dim} {dtype} ({byte_count / 1e6:.1f} MB) in {data_dir}")


for command in (import_table, publish, plan, verify, export):
    cli.add_command(command)


@cli.command()
@click.argument("names", nargs=-1, metavar="[TABLE]...")
@url_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def tables(names: tuple[str, ...], url: str, as_json: bool) -> None:
    """List what a server, or a data dir by local:DIR, has, or TABLEs of it.

    VERSION is the live one, LSN the last update that every lookup sees.
    """
    with connect(url) as client:
        infos = [client.table(name) for name in names] if names else client.tables()
    if as_json:
        click.echo(json.dumps([asdict(info) for info in infos]))
        return
    width = max((len(info.name) for info in infos), default=4)
    click.echo(
        f"{'NAME':{width}}  {'ROWS':>12}  {'DIM':>6}  {'DTYPE':8}  {'KEYS':6}  "
        f"{'ROWS MB':>10}  {'KEYS MB':>8}  {'RESIDENT':>8}  {'VERSION':>7}  {'OPTIMIZER':15}  LSN"
    )
    for info in infos:
        if info.refused:
            click.echo(f"{info.name:{width}}  refused: {info.refused}")
            continue
        resident = info.resident_bytes / info.rows_bytes if info.rows_bytes else 1
        click.echo(
            f"{info.name:{width}}  {info.rows:>12}  {info.dim:>6}  {info.dtype:8}  "
            f"{info.key_kind or '-':6}  {info.rows_bytes / 1e6:>10.1f}  "
            f"{info.keys_bytes / 1e6:>8.1f}  {resident:>8.0%}  {info.version:>7}  "
            f"{(info.optimizer or {}).get('name', '-'):15}  {info.lsn}"
        )


# Unknown options are taken as ids, or `-1` would be told off as an option instead of as an id.
@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("table")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@url_option
@click.option("--by-key", is_flag=True, help="Take the arguments as keys instead of ids.")
@click.option(
    "--pool",
    type=click.Choice([mode.value for mode in Pooling]),
    help="Print one vector, pooled from all rows.",
)
@click.option(
    "--dtype",
    type=click.Choice([dtype.value for dtype in REPLY_DTYPES]),
    default="float32",
    show_default=True,
    help="What the server answers in.",
)
@click.option(
    "--missing",
    type=click.Choice([policy.value for policy in ROW_POLICIES]),
    default="error",
    show_default=True,
    help="What to do with an id or key that has no row.",
)
@click.option("--version", type=click.IntRange(1), help="This one, instead of the live one.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: every element, for programs.")
def lookup(
    table: str,
    ids: tuple[str, ...],
    url: str,
    by_key: bool,
    pool: Any,
    dtype: str,
    missing: str,
    version: int | None,
    as_json: bool,
) -> None:
    """Print the vectors of IDs, or of keys.

    \b
        gatherd lookup words 4 20
        gatherd lookup words king queen --by-key
        gatherd lookup words king queen --by-key --pool mean --url local:./data --json
    """
    with connect(url) as client:
        are_strings = by_key and client.table(table).key_kind == "bytes"
        asked = list(ids) if are_strings else [integer(text) for text in ids]
        rows: dict[str, Any] = {"keys" if by_key else "ids": asked}
        options: dict[str, Any] = {"dtype": dtype, "missing": missing, "return_status": True}
        options["version"] = version
        if pool is None:
            vectors, status = client.lookup(table, **rows, **options)
        else:
            vectors, status = client.lookup_bags(table, **rows, offsets=[0], mode=pool, **options)
    if as_json:
        document = {"ids": asked, "vectors": vectors.tolist(), "status": status.tolist()}
        click.echo(json.dumps(document))
        return
    labels = asked if pool is None else [f"{pool} of {len(asked)}"]
    missing_rows = status if pool is None else [0]
    for label, vector, is_missing in zip(labels, vectors, missing_rows, strict=True):
        shown = " ".join(f"{value:.5g}" for value in vector[:8])
        more = f" … ({len(vector)} elements)" if len(vector) > 8 else ""
        click.echo(f"{label}: {shown}{more}{'  (missing)' if is_missing else ''}")


for command in (scatter_add, apply_gradients, assign):
    cli.add_command(command)
for command in (versions, rollback, set_optimizer, delete, snapshot, token, bench, top):
    cli.add_command(command)
for command in (backup, backups, restore):
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
