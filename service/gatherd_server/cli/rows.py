"""`gatherd rows`: a table's rows with their ids and keys, as text or JSON lines."""

import json
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from gatherd import RowBatch
from gatherd_server.cli.keys import shown_key
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE

# Large enough that requests don't count, small enough that the first rows come at once.
BATCH_ROWS = 1000


@click.command()
@click.argument("table", type=TABLE)
@click.option("--limit", type=click.IntRange(1), help="The most rows to print.  [default: all]")
@click.option("--prefix", help="Only rows whose keys begin with this; for string keys.")
@click.option("--slots", is_flag=True, help="The optimizer's state of each row as well.")
@click.option("--version", type=click.IntRange(1), help="This one, instead of the live one.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each row, for programs.")
def rows(
    table: str,
    limit: int | None,
    prefix: str | None,
    slots: bool,
    version: int | None,
    target: CommandTarget,
    as_json: bool,
) -> None:
    """Print the rows of TABLE, in the order of their ids, all of one version.

    \b
        gatherd rows words --limit 3
        gatherd rows items --json --slots | head -1

    A line has the row's id, its key if the table has keys, its numbers, and with --slots each
    slot's name and numbers, with tabs between these. Rows are printed as they come, so a pipe can
    end early. Numbers are the shortest decimals that give the same float32.
    """
    left = limit
    with target.connect() as client:
        batch = min(BATCH_ROWS, limit or BATCH_ROWS)
        for found in client.rows(table, batch=batch, slots=slots, prefix=prefix, version=version):
            lines = _json_lines(found) if as_json else _lines(found)
            for line in lines:
                click.echo(line)
                if left is not None:
                    left -= 1
                    if not left:
                        return


def _lines(found: RowBatch) -> Iterator[str]:
    for number, row in enumerate(found.ids.tolist()):
        parts = [str(row)]
        if found.keys is not None:
            parts.append(shown_key(found.keys[number]))
        parts.append(_numbers(found.vectors[number]))
        parts += [f"{name} {_numbers(_of(values, number))}" for name, values in found.slots.items()]
        yield "\t".join(parts)


def _json_lines(found: RowBatch) -> Iterator[str]:
    keys = None if found.keys is None else found.keys.tolist()
    for number, row in enumerate(found.ids.tolist()):
        line: dict[str, Any] = {"id": row}
        if keys is not None:
            line["key"] = keys[number]
        line["vector"] = _json_numbers(found.vectors[number])
        if found.slots:
            line["slots"] = {
                name: _json_numbers(_of(values, number)) for name, values in found.slots.items()
            }
        yield json.dumps(line, allow_nan=False)


def _of(values: Any, number: int) -> Any:
    """A slot's values for a row; one of the whole table is the same for each."""
    return values[number] if values.ndim == 2 else values


def _numbers(values: Any) -> str:
    return " ".join(map(str, values))


def _json_numbers(values: Any) -> list[float | None]:
    """Numbers as their shortest decimals; null for NaN and infinity, which JSON lacks."""
    is_finite = np.isfinite(values)
    return [
        (value.item() if values.dtype.kind == "i" else float(str(value))) if fits else None
        for value, fits in zip(values, is_finite, strict=True)
    ]
