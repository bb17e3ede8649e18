"""`gatherd create`: a new table of drawn rows, or an open one."""

import secrets
from pathlib import Path
from typing import Any

import click

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.initializer import NAMES
from gatherd.store.limits import DIM_MAX, ROWS_MAX
from gatherd_server.cli.data_dir import open_data_dir
from gatherd_server.cli.open_options import open_options, read_open
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
from gatherd_server.types import OptimizerSpec
from gatherd_server.wire.checks import open_table


@click.command()
@click.argument("name", type=TABLE)
@click.option("--rows", type=click.IntRange(0, ROWS_MAX), help="Number of rows.")
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
@open_options
@optimizer_options
@frozen_option
@data_dir_options("Data dir to put the table into; made when it isn't there.")
def create(
    name: str,
    rows: int | None,
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
    **growing: Any,
) -> None:
    """Make a new table of drawn rows, or an open one.

    An open table has keys, no rows yet, and grows: a push with --create makes rows.

    It takes updates: scatter-add and assign, and with --optimizer gradients too.

    \b
        gatherd create items --rows 1000000 --dim 8 --init glorot_uniform --seed 7 --data-dir ./data
        gatherd create tags --rows 5000 --dim 64 --init normal --init-option stddev=0.1
        gatherd create words --keys string --dim 64 --ttl 30d --optimizer adagrad --lr 0.05
    """
    initializer = read_initializer(init, init_option)
    given = read_optimizer(optimizer, lr, optimizer_option)
    spec = read_open(rows, initializer, seed, growing)
    if spec is not None:
        if default_vector is not None:
            raise InvalidArgument(
                "--default-vector isn't for an open table, which has an initial vector for each "
                'key: lookups get it with missing="init"'
            )
        asked = None if given is None else OptimizerSpec(given.name.value, given.options())
        change = open_table(name, 0, dim, DType(dtype), asked, spec, frozen=frozen)
        with open_data_dir(data_dir, create=True) as owned:
            owned.change(change)
        click.echo(
            f"{name}: no rows yet of {dim} {dtype}, {spec.keys} keys, at most {spec.rows_max} "
            f"rows, in {data_dir}"
        )
        return
    assert rows is not None
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
