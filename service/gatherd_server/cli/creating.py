"""`gatherd create`: a new table of drawn or zero rows."""

import secrets
from pathlib import Path

import click

from gatherd.store.dtypes import DType
from gatherd.store.initializer import NAMES
from gatherd.store.limits import DIM_MAX, ROWS_MAX
from gatherd_server.cli.data_dir import open_data_dir
from gatherd_server.cli.options import (
    default_vector_option,
    frozen_option,
    optimizer_options,
    read_default,
    read_initializer,
    read_optimizer,
)
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import data_dir_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.loaders.initializers import created_origin, initial_blocks
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.training.optimizer import Optimizer


@click.command()
@click.argument("name", type=TABLE)
@click.option("--rows", type=click.IntRange(0, ROWS_MAX), required=True, help="Number of rows.")
@click.option("--dim", type=click.IntRange(1, DIM_MAX), required=True, help="Elements a row.")
@click.option(
    "--init",
    type=click.Choice(NAMES),
    metavar="NAME",
    default="uniform",
    show_default=True,
    help=f"How rows are drawn, as Keras does: {', '.join(NAMES)}.",
)
@click.option(
    "--init-option",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the initializer, as stddev=0.1 or mode=fan_out; may be repeated.",
)
@click.option("--seed", type=click.IntRange(0), help="Same seed, same table. Random by default.")
@click.option(
    "--dtype",
    type=click.Choice([kind.value for kind in DType]),
    default="float32",
    show_default=True,
    help="What the rows are stored in.",
)
@default_vector_option
@optimizer_options
@frozen_option
@data_dir_options("Data dir to put the table into; made when it isn't there.")
def create(
    name: str,
    rows: int,
    dim: int,
    init: str,
    init_option: tuple[str, ...],
    seed: int | None,
    dtype: str,
    default_vector: Path | None,
    optimizer: str | None,
    lr: float | None,
    optimizer_option: tuple[str, ...],
    frozen: bool,
    data_dir: Path,
) -> None:
    """Make a new table of drawn or zero rows.

    It takes updates: scatter-add and assign, and with --optimizer gradients too.

    \b
        gatherd create items --rows 1000000 --dim 8 --init glorot_uniform --seed 7 --data-dir ./data
        gatherd create tags --rows 5000 --dim 64 --init normal --init-option stddev=0.1
    """
    initializer = read_initializer(init, init_option)
    given = read_optimizer(optimizer, lr, optimizer_option)
    trained = Optimizer.for_new_table(given, DType(dtype), frozen=frozen)
    if trained is not None:
        trained.check_table(DType(dtype), rows)
    seed = secrets.randbits(63) if seed is None else seed
    padding_id = None if trained is None else trained.padding_id
    blocks = initial_blocks(initializer, rows, dim, DType(dtype), seed, padding_id)
    origin = created_origin(initializer, seed)
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
    with open_data_dir(data_dir, create=True) as opened, Progress(f"creating {name}"):
        opened.add_table(table)
    byte_count = rows * dim * table.dtype.itemsize
    click.echo(f"{name}: {rows} rows of {dim} {dtype} ({byte_count / 1e6:.1f} MB) in {data_dir}")
