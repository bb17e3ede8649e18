"""`gatherd neighbors`: the nearest rows of a table."""

import json

import click

from gatherd.store.query import K_DEFAULT, Metric
from gatherd_server.cli.options import read_rows
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE

# A search of a table that must come from a disk takes longer than a lookup's usual timeout.
TIMEOUT_SECONDS = 600.0


# Unknown options are taken as keys, as in `lookup`.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("table", type=TABLE)
@click.argument("rows", nargs=-1, required=True, metavar="KEY...")
@target_options
@click.option(
    "-k",
    "count",
    type=click.IntRange(1, 2**31 - 1),
    default=K_DEFAULT,
    show_default=True,
    metavar="N",
    help="How many of each.",
)
@click.option(
    "--metric",
    type=click.Choice([metric.value for metric in Metric]),
    default=Metric.COSINE.value,
    show_default=True,
    help="cosine and dot: higher is nearer; l2, the distance: lower is.",
)
@click.option("--by-id", is_flag=True, help="Take the arguments as ids although there are keys.")
@click.option("--include-self", is_flag=True, help="Let a row be its own neighbor.")
@click.option("--version", type=click.IntRange(1), help="This one, instead of the live one.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def neighbors(
    table: str,
    rows: tuple[str, ...],
    target: CommandTarget,
    count: int,
    metric: str,
    by_id: bool,
    include_self: bool,
    version: int | None,
    as_json: bool,
) -> None:
    """Print the nearest rows of KEYs, or of ids in a table without keys.

    Every row is compared: exact, for exploration, and as slow as reading the whole table.

    \b
        gatherd neighbors words king
        gatherd neighbors items 4 20 -k 5 --metric dot --data-dir ./data
    """
    with target.connect(timeout=TIMEOUT_SECONDS) as client:
        by_key = not by_id and bool(client.table(table).key_kind)
        asked = read_rows(client, table, rows, by_key=by_key)
        found = client.neighbors(
            table,
            None if by_key else asked,
            keys=asked if by_key else None,
            k=count,
            metric=metric,  # type: ignore[arg-type]  # one of the names, click has checked it
            include_self=include_self,
            version=version,
        )
    keys = None if found.keys is None else found.keys.tolist()
    if as_json:
        document = {
            "queries": asked,
            "ids": found.ids.tolist(),
            "scores": found.scores.tolist(),
            "keys": keys,
            "version": found.version,
        }
        click.echo(json.dumps(document))
        return
    labels = found.ids.tolist() if keys is None else keys
    for query, ids, scores, names in zip(
        asked, found.ids.tolist(), found.scores.tolist(), labels, strict=True
    ):
        click.echo(f"{query}:")
        width = max((len(str(name)) for name in names), default=0)
        for name, score, row in zip(names, scores, ids, strict=True):
            click.echo(f"  {name!s:{width}}  {score:.5g}{'' if keys is None else f'  (id {row})'}")
