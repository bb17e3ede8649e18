"""`gatherd bench`: how fast a server answers from here, measured with the SDK that users have.

One process asks, with a given number of threads; each waits for its answer before it asks again.
Finding a server's full capacity takes several such processes, on machines of their own. Left out on
purpose: updates that change the results of lookups. The only update is a scatter-add of zeros.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from gatherd import Client, TableInfo
from gatherd.errors import FailedPrecondition, InvalidArgument
from gatherd.store.dtypes import REPLY_DTYPES
from gatherd.store.query import Pooling
from gatherd_server.cli.connect import connect, credential_options

ZIPF_EXPONENT: Final = 1.05
# Ranks of Zipf's law to draw from, 8 bytes each. Rarer rows are hardly ever asked for.
ZIPF_RANKS_MAX: Final = 4_000_000
BATCHES: Final = (1, 64, 1024)
# The most batches, and ids in all of them, that a thread asks for in turn.
DRAWN_BATCHES: Final = 32
DRAWN_IDS_MAX: Final = 1 << 20
WARM_UP_CALLS: Final = 3
COUNT_MAX: Final = 10_000_000

Ids = NDArray[np.int64]
Call = Callable[[Ids], object]


@dataclass(frozen=True, slots=True)
class Cell:
    """The measurements of one kind of request. Times are in µs, of one request."""

    table: str
    operation: str
    batch: int
    skew: str
    dtype: str
    requests: int
    p50: float
    p95: float
    p99: float
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The bounds of a cell, which ends at the first one reached."""

    seconds: float
    count: int
    threads: int


@click.command("bench")
@click.argument("url")
@credential_options
@click.option(
    "--table", "names", multiple=True, help="Table to look up; may be repeated. All, by default."
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=BATCHES,
    show_default=True,
    help="Ids in a request; may be repeated.",
)
@click.option(
    "--skew",
    "skews",
    type=click.Choice(["uniform", "zipf"]),
    multiple=True,
    default=("uniform",),
    show_default=True,
    help=f"How ids are drawn; zipf has exponent {ZIPF_EXPONENT}. May be repeated.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice([dtype.value for dtype in REPLY_DTYPES]),
    multiple=True,
    default=("float32",),
    show_default=True,
    help="What the server answers in; may be repeated.",
)
@click.option(
    "--pool",
    "modes",
    type=click.Choice([mode.value for mode in Pooling]),
    multiple=True,
    help="Also measure bags pooled so, of --bag ids each; may be repeated.",
)
@click.option(
    "--bag", type=click.IntRange(1), default=20, show_default=True, help="Ids in a bag, at most."
)
@click.option(
    "--updates",
    is_flag=True,
    help="Also measure scatter-add of zeros to tables that take updates: their rows keep their "
    "values, and the log grows.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 3600),
    default=1.0,
    show_default=True,
    help="Time for each line of the answer.",
)
@click.option(
    "--count",
    type=click.IntRange(1, COUNT_MAX),
    default=10_000,
    show_default=True,
    help="Requests for each line, at most.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Requests in flight.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the ids.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def bench(
    url: str,
    names: tuple[str, ...],
    batches: tuple[int, ...],
    skews: tuple[str, ...],
    dtypes: tuple[str, ...],
    modes: tuple[str, ...],
    bag: int,
    updates: bool,
    seconds: float,
    count: int,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how fast the server at URL answers.

    \b
        gatherd bench http://127.0.0.1:8000
        gatherd bench grpc://10.0.0.5:8001 --table items --batch 1 --batch 16384 --threads 8
        gatherd bench local:./data --skew zipf --dtype float16 --pool sum

    Without --updates nothing is changed. p50, p95 and p99 are of a request's time in µs, with the
    SDK's share of it; rows/s counts the rows of all threads, in bags too.
    """
    rng = np.random.default_rng(seed)
    bounds = _Bounds(seconds, count, threads)
    cells = []
    with connect(url) as client:
        tables = _tables(client, names)
        if updates and not any(table.trainable for table in tables):
            raise FailedPrecondition(
                f"none of {', '.join(table.name for table in tables)} takes updates; "
                "`gatherd set-optimizer NAME sgd` makes a table trainable"
            )
        if not as_json:
            click.echo(_line(_HEADER, _width(tables)))
        for table, skew, batch in product(tables, skews, batches):
            ids = _draw(rng, table, skew, batch)
            for operation, dtype, call in _calls(client, table, batch, dtypes, modes, bag, updates):
                times, rate = _measure(call, ids, bounds)
                p50, p95, p99 = (float(x) for x in np.percentile(times, (50, 95, 99)))
                cells.append(
                    Cell(
                        *(table.name, operation, batch, skew, dtype, len(times)),
                        *(p50, p95, p99, rate * batch),
                    )
                )
                if not as_json:
                    click.echo(_line(_shown(cells[-1]), _width(tables)))
    if as_json:
        click.echo(json.dumps([asdict(cell) for cell in cells]))


def _tables(client: Client, names: tuple[str, ...]) -> list[TableInfo]:
    """The tables to measure. InvalidArgument when there is nothing to look up."""
    if names:
        tables = [client.table(name) for name in dict.fromkeys(names)]
        empty = [table.name for table in tables if not table.rows]
        if empty:
            raise InvalidArgument(f"table {empty[0]!r} has no rows to look up")
        return tables
    tables = [table for table in client.tables() if table.rows and not table.refused]
    if not tables:
        raise InvalidArgument("there is no table with rows to look up")
    return tables


def _draw(rng: np.random.Generator, table: TableInfo, skew: str, batch: int) -> list[Ids]:
    """Batches of ids. With Zipf's law the frequent rows are scattered over the table."""
    shape = (max(1, min(DRAWN_BATCHES, DRAWN_IDS_MAX // batch)), batch)
    if skew == "uniform":
        return list(rng.integers(0, table.rows, shape))
    ranks = min(table.rows, ZIPF_RANKS_MAX)
    sums = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -ZIPF_EXPONENT)
    drawn = np.searchsorted(sums / sums[-1], rng.random(shape)).clip(max=ranks - 1)
    # Python's integers, because the product may be more than 64 bits.
    rows = [[rank * 2_654_435_761 % table.rows for rank in line] for line in drawn.tolist()]
    return list(np.array(rows, np.int64))


def _calls(
    client: Client,
    table: TableInfo,
    batch: int,
    dtypes: tuple[Any, ...],
    modes: tuple[Any, ...],
    bag: int,
    updates: bool,
) -> Iterator[tuple[str, str, Call]]:
    """Each kind of request: its name, the dtype on the wire, and how to send it."""
    offsets = np.arange(0, batch, bag)
    for dtype in dtypes:

        def lookup(ids: Ids, dtype: Any = dtype) -> object:
            return client.lookup(table.name, ids, dtype=dtype)

        yield "lookup", dtype, lookup
        for mode in modes:

            def pooled(ids: Ids, dtype: Any = dtype, mode: Any = mode) -> object:
                return client.lookup_bags(table.name, ids, offsets, mode=mode, dtype=dtype)

            yield f"bags {mode}", dtype, pooled
    if updates and table.trainable:
        zeros = np.zeros((batch, table.dim), np.float32)

        def add(ids: Ids) -> object:
            return client.scatter_add(table.name, ids, zeros)

        yield "scatter-add", "float32", add


def _measure(call: Call, batches: list[Ids], bounds: _Bounds) -> tuple[list[float], float]:
    """µs of each request, of all threads, and requests a second."""
    for number in range(min(WARM_UP_CALLS, bounds.count)):
        call(batches[number % len(batches)])
    taken: list[list[float]] = [[] for _ in range(bounds.threads)]
    errors: list[BaseException] = []
    begin = time.perf_counter()
    end = begin + bounds.seconds

    def ask(number: int) -> None:
        own = taken[number]
        share = len(range(number, bounds.count, bounds.threads))
        try:
            while len(own) < share and not errors:
                start = time.perf_counter()
                # At least one request each, however short the time.
                if own and start >= end:
                    return
                call(batches[(number + len(own)) % len(batches)])
                own.append((time.perf_counter() - start) * 1e6)
        except Exception as error:  # noqa: BLE001  # raised again where the threads are joined
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(bounds.threads - 1)]
    for thread in threads:
        thread.start()
    ask(bounds.threads - 1)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    times = [one for own in taken for one in own]
    return times, len(times) / (time.perf_counter() - begin)


_HEADER = (
    *("TABLE", "OPERATION", "BATCH", "SKEW", "DTYPE", "REQUESTS"),
    *("P50 µs", "P95 µs", "P99 µs", "ROWS/S"),
)


def _shown(cell: Cell) -> tuple[Any, ...]:
    times = tuple(f"{x:.1f}" for x in (cell.p50, cell.p95, cell.p99))
    first = (cell.table, cell.operation, cell.batch, cell.skew, cell.dtype, cell.requests)
    return (*first, *times, f"{cell.rows_per_second:.0f}")


def _width(tables: list[TableInfo]) -> int:
    return max(5, *(len(table.name) for table in tables))


def _line(cells: tuple[Any, ...], width: int) -> str:
    table, operation, batch, skew, dtype, requests, p50, p95, p99, rows = cells
    return (
        f"{table:{width}}  {operation:11}  {batch:>8}  {skew:7}  {dtype:8}  {requests:>8}  "
        f"{p50:>9}  {p95:>9}  {p99:>9}  {rows:>11}"
    )
