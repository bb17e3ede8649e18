"""`gatherd token`: makes, revokes and lists the tokens of a server."""

import json
import os
from pathlib import Path

import click

from gatherd.errors import AlreadyExists, InvalidArgument, StorageError
from gatherd_server.access.callers import Scope
from gatherd_server.access.token_file import (
    add_token,
    make_grant,
    read_tokens,
    revoke_token,
)


@click.command()
@click.argument("name", required=False)
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    envvar="GATHERD_TOKENS",
    required=True,
    help="The server's file of tokens; made when it isn't there.",
)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    help="What it is for; may be repeated, for none implies another.",
)
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="PATTERN",
    help="For which tables, as 'items*', or '*' for every one; may be repeated.",
)
@click.option("--rate", type=float, help="Requests a second in each worker, at most.")
@click.option("--concurrency", type=int, help="Requests under way in each worker, at most.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new file for the token, that its owner alone may read, instead of printing it.",
)
@click.option("--revoke", is_flag=True, help="Take the token called NAME out of the file.")
@click.option("--list", "lists", is_flag=True, help="List what each token is for; none is shown.")
@click.option("--json", "as_json", is_flag=True, help="With --list: as JSON, for programs.")
def token(
    name: str | None,
    tokens: Path,
    scopes: tuple[str, ...],
    tables: tuple[str, ...],
    rate: float | None,
    concurrency: int | None,
    out: Path | None,
    revoke: bool,
    lists: bool,
    as_json: bool,
) -> None:
    """Make a token called NAME, enter its hash into a file, and print it: it is kept nowhere.

    A server with that file (--tokens) takes it within seconds.

    \b
        gatherd token ranker --scope read --table 'items*' --tokens ./tokens
        gatherd token trainer --scope read --scope update --table items --rate 100 --tokens ./tokens
        gatherd token ranker --revoke --tokens ./tokens
        gatherd token --list --tokens ./tokens
    """
    if lists or as_json:
        if not lists or name or revoke or scopes or tables or rate or concurrency or out:
            raise InvalidArgument("--list takes no other option than --json and --tokens")
        _list(tokens, as_json)
        return
    if name is None:
        raise click.UsageError("give the token's NAME, or --list")
    if revoke:
        if scopes or tables or rate is not None or concurrency is not None or out is not None:
            raise InvalidArgument("--revoke takes no other option than --tokens")
        revoke_token(tokens, name)
        click.echo(f"{name}: revoked")
        return
    if not tables and set(scopes) != {Scope.METRICS.value}:
        raise click.UsageError("give --table PATTERN, as 'items*', or '*' for every table")
    try:
        grant = make_grant(name, list(scopes), list(tables), rate, concurrency)
    except ValueError as error:
        raise InvalidArgument(f"{error}; see --help") from None
    if out is None:
        click.echo(add_token(tokens, grant))
        return
    try:
        # Before the token is made: a token that can't be written would be lost.
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    except FileExistsError:
        raise AlreadyExists(f"{out} is there already; tokens go to new files") from None
    except OSError as error:
        raise StorageError(f"{out} can't be written: {error.strerror}") from None
    try:
        with open(fd, "w") as file:
            file.write(add_token(tokens, grant) + "\n")
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    click.echo(f"{name}: its token is in {out}")


def _list(tokens: Path, as_json: bool) -> None:
    grants = sorted(read_tokens(tokens).values(), key=lambda grant: grant.name)
    if as_json:
        rows = [
            {
                "name": grant.name,
                "scopes": sorted(scope.value for scope in grant.scopes),
                "tables": list(grant.tables),
                "rate": grant.rate,
                "concurrency": grant.concurrency,
            }
            for grant in grants
        ]
        click.echo(json.dumps({"tokens": rows}))
        return
    width = max(4, *(len(grant.name) for grant in grants))
    click.echo(f"{'NAME':{width}}  {'SCOPES':26}  {'RATE':>8}  {'AT ONCE':>7}  TABLES")
    for grant in grants:
        scopes = ",".join(sorted(scope.value for scope in grant.scopes))
        rate = "-" if grant.rate is None else f"{grant.rate:g}/s"
        click.echo(
            f"{grant.name:{width}}  {scopes:26}  {rate:>8}  {grant.concurrency or '-':>7}  "
            f"{' '.join(grant.tables) or '-'}"
        )
