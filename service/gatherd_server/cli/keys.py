"""`gatherd keys`: a table's keys with their ids."""

import json
from typing import Any

import click

from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE

LIMIT_DEFAULT = 100


@click.command()
@click.argument("table", type=TABLE)
@click.option("--prefix", help="Only keys that begin with this; for string keys.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=LIMIT_DEFAULT,
    show_default=True,
    help="The most keys to print.",
)
@click.option(
    "--start", type=click.IntRange(0), default=0, show_default=True, help="The id to begin at."
)
@click.option("--version", type=click.IntRange(1), help="This one, instead of the live one.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def keys(
    table: str,
    prefix: str | None,
    limit: int,
    start: int,
    version: int | None,
    target: CommandTarget,
    as_json: bool,
) -> None:
    """Print the keys of TABLE, each behind its id, in the order of the ids.

    \b
        gatherd keys words --limit 20
        gatherd keys words --prefix king

    With --prefix every key is read, because there is no index of prefixes. When more keys follow,
    the last line, on standard error, has the --start to go on with.
    """
    found: list[tuple[Any, int]] = []
    following: int | None = start
    with target.connect() as client:
        while following is not None and len(found) < limit:
            page = client.keys(
                table, prefix=prefix, limit=limit - len(found), start=following, version=version
            )
            found += page
            following, version = page.next, page.version
    if as_json:
        document = {
            "keys": [key for key, _ in found],
            "ids": [row for _, row in found],
            "next": following,
            "version": version,
        }
        click.echo(json.dumps(document))
        return
    for key, row in found:
        click.echo(f"{row}\t{shown_key(key)}")
    if following is not None:
        click.echo(f"more keys may follow: --start {following}", err=True)


def shown_key(key: str | int) -> str:
    """A key on one line, which can't move a terminal's cursor: odd characters are escaped."""
    text = str(key)
    return text if text.isprintable() else repr(text)[1:-1]
