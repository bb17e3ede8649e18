"""`gatherd rename`, `alias`, `unalias`, `clone` and `replace`."""

import click

from gatherd.store.limits import LIVE_VERSION
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.cli.versions import changing, if_version_option, keep_versions_option, tell_live
from gatherd_server.types import CloneTable, DeleteAlias, RenameTable, ReplaceTable, SetAlias


@click.command()
@click.argument("table", type=TABLE)
@click.argument("to", type=TABLE)
@click.option("--keep-alias", is_flag=True, help="Leave an alias under the old name.")
@target_options
def rename(table: str, to: str, keep_alias: bool, target: CommandTarget) -> None:
    """Give TABLE the name TO. Versions, updates and aliases stay with it.

    \b
        gatherd rename words english --data-dir ./data
        gatherd rename words english --keep-alias --url http://127.0.0.1:8000
    """
    with changing(target) as make:
        done = make(RenameTable(table, to, keep_alias))
    kept = f", and {table} is an alias of it" if keep_alias else ""
    click.echo(f"{table}: is called {to} now{kept}, LSN {done.lsn}")


@click.command()
@click.argument("alias", type=TABLE)
@click.argument("table", type=TABLE)
@target_options
def alias(alias: str, table: str, target: CommandTarget) -> None:
    """Point ALIAS to TABLE, or switch it from another table, at one instant.

    Lookups, updates and changes of versions go by an alias as by a name. `gatherd tables` lists
    aliases beside their tables.

    \b
        gatherd alias items items_green --url http://127.0.0.1:8000
    """
    with changing(target) as make:
        done = make(SetAlias(alias, table))
    click.echo(f"{alias}: points to {table}, version {done.version}, LSN {done.lsn}")


@click.command()
@click.argument("alias", type=TABLE)
@target_options
def unalias(alias: str, target: CommandTarget) -> None:
    """Remove ALIAS. Its table stays."""
    with changing(target) as make:
        done = make(DeleteAlias(alias))
    click.echo(f"{alias}: is no alias any more, LSN {done.lsn}")


@click.command()
@click.argument("table", type=TABLE)
@click.argument("to", type=TABLE)
@target_options
def clone(table: str, to: str, target: CommandTarget) -> None:
    """Make a table TO as a copy of TABLE at one LSN, optimizer state and all.

    Updates of TABLE go on meanwhile.

    \b
        gatherd clone items trial --data-dir ./data
    """
    with changing(target) as make:
        done = make(CloneTable(to, table))
    click.echo(f"{to}: a copy of {table} as of LSN {done.lsn}")


@click.command()
@click.argument("table", type=TABLE)
@click.argument("source", type=TABLE)
@click.option("--allow-dim-change", is_flag=True, help="Also when SOURCE has another dim.")
@if_version_option
@keep_versions_option
@target_options
def replace(
    table: str,
    source: str,
    allow_dim_change: bool,
    if_version: int | None,
    keep_versions: int | None,
    target: CommandTarget,
) -> None:
    """Publish a copy of table SOURCE as the new live version of TABLE.

    Rows, keys, dtype, optimizer and its state are SOURCE's, which stays as it is. `gatherd
    rollback` goes back to what TABLE had.

    \b
        gatherd replace items trial --data-dir ./data
    """
    change = ReplaceTable(table, source, if_version or LIVE_VERSION, allow_dim_change)
    with changing(target, keep_versions) as make:
        tell_live(table, make(change))
