"""`gatherd tables` and `gatherd lookup`: a server's tables, and vectors of them."""

import json
from dataclasses import asdict
from typing import Any

import click

from gatherd import TableInfo
from gatherd.store.dtypes import REPLY_DTYPES
from gatherd.store.query import ROW_POLICIES, Pooling
from gatherd_server.cli.options import read_rows
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.training.optimizer import OptimizerName


@click.command()
@click.argument("names", nargs=-1, type=TABLE, metavar="[TABLE]...")
@target_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def tables(names: tuple[str, ...], target: CommandTarget, as_json: bool) -> None:
    """List the tables of a server or a data dir, or the TABLEs named.

    VERSION is the live one, LSN the last update that every lookup sees.
    """
    with target.connect() as client:
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
            f"{_optimizer(info):15}  {info.lsn}"
        )


def _optimizer(info: TableInfo) -> str:
    """Its name; "none" for a table that takes updates without one, "-" for one that takes none."""
    if info.optimizer is not None:
        return str(info.optimizer["name"])
    return OptimizerName.NONE.value if info.trainable else "-"


# Unknown options are taken as ids, so that `-1` is rejected as an id out of range and not as an
# unknown option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("table", type=TABLE)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@target_options
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
    target: CommandTarget,
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
        gatherd lookup words king queen --by-key --pool mean --data-dir ./data --json
    """
    with target.connect() as client:
        asked = read_rows(client, table, ids, by_key=by_key)
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
