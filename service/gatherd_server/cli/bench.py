"""`gatherd bench`: how fast a server answers from here, measured with the SDK that users have.

One process asks, with a given number of threads; each waits for its answer before it asks again.
Finding a server's full capacity takes several such processes, on machines of their own. Left out on
purpose: pushes that change the results of lookups. bench_requests.py has the requests.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final

import click
import numpy as np

from gatherd import Client, TableInfo
from gatherd.busy_poll import BUSY_POLL_US, BUSY_POLL_US_MAX
from gatherd.store.dtypes import REPLY_DTYPES
from gatherd.store.query import ROW_POLICIES, Missing, Pooling
from gatherd_server.cli.bench_requests import (
    PUSHES,
    SCATTER_ADD,
    ZIPF_EXPONENT,
    Batch,
    Call,
    Requests,
    check_pushes,
    name_of,
    tables_of,
    together,
)
from gatherd_server.cli.target import CommandTarget, addressed, target_options
from gatherd_server.cli.typed import TABLE

BATCHES: Final = (1, 64, 1024)
WARM_UP_CALLS: Final = 3
COUNT_MAX: Final = 10_000_000
TABLES_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """The measurements of one kind of request. Times are in µs, of one request.

    `batch` counts the ids or keys of each table.
    """

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
    """When a cell is done: at whichever comes first."""

    seconds: float
    count: int
    threads: int


@click.command("bench")
@click.argument("address", required=False, metavar="")
@target_options
@click.option(
    "--table",
    "names",
    multiple=True,
    type=TABLE,
    help="Table to look up; may be repeated. All, by default.",
)
@click.option(
    "--tables",
    "table_counts",
    type=click.IntRange(1, TABLES_MAX),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Tables in a request: the first so many of them at once; may be repeated.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=BATCHES,
    show_default=True,
    help="Ids of each table in a request; may be repeated.",
)
@click.option("--keys", "by_key", is_flag=True, help="Look up by key, in tables with keys.")
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
    "--bags",
    type=click.IntRange(1),
    multiple=True,
    help="Bags of each table in a request that pools, of --bag ids each, instead of as many as "
    "--batch ids make; may be repeated.",
)
@click.option(
    "--missing",
    type=click.Choice([policy.value for policy in ROW_POLICIES]),
    default=Missing.ERROR.value,
    show_default=True,
    help="What a lookup does with an id that has no row. All but error add a status for each id.",
)
@click.option(
    "--push",
    "kinds",
    type=click.Choice(PUSHES),
    multiple=True,
    help="Also measure pushes of zeros to tables that take updates: their rows keep their values, "
    "and the log grows. May be repeated.",
)
@click.option("--updates", is_flag=True, help="The same as --push scatter-add.")
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
@click.option(
    "--busy-poll-us",
    type=click.IntRange(0, BUSY_POLL_US_MAX),
    default=BUSY_POLL_US,
    show_default=True,
    help="µs to wait awake for a reply over HTTP, as the SDK does; 0 to sleep at once.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the ids.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def bench(
    address: str | None,
    target: CommandTarget,
    names: tuple[str, ...],
    table_counts: tuple[int, ...],
    batches: tuple[int, ...],
    by_key: bool,
    skews: tuple[str, ...],
    dtypes: tuple[str, ...],
    modes: tuple[str, ...],
    bag: int,
    bags: tuple[int, ...],
    missing: str,
    kinds: tuple[str, ...],
    updates: bool,
    seconds: float,
    count: int,
    threads: int,
    busy_poll_us: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how fast a server, or a data dir, answers.

    \b
        gatherd bench
        gatherd bench --url grpc://10.0.0.5:8001 --table items --batch 1 --batch 16384 --threads 8
        gatherd bench --tables 26 --batch 1 --batch 16
        gatherd bench --table words --keys --pool mean --bags 32
        gatherd bench --table items --push apply-gradients --batch 64
        gatherd bench --data-dir ./data --skew zipf --dtype float16 --pool sum

    Without --push nothing is changed. p50, p95 and p99 are of a request's time in µs, with the
    SDK's share of it; rows/s counts the rows of all threads, in bags too, and of all tables.
    """
    pushed = tuple(dict.fromkeys((*kinds, *([SCATTER_ADD] if updates else []))))
    requests = Requests(batches, bags, bag, dtypes, modes, pushed, by_key, missing)
    with addressed(target, address).connect(busy_poll_us=busy_poll_us) as client:
        tables = tables_of(client, names, by_key)
        check_pushes(tables, pushed)
        asked = together(tables, table_counts)
        width = max(5, *(len(name_of(one)) for one in asked))
        if not as_json:
            click.echo(_line(_HEADER, width))
        cells = []
        rng, bounds = np.random.default_rng(seed), _Bounds(seconds, count, threads)
        for cell in _cells(client, asked, skews, requests, rng, bounds):
            cells.append(cell)
            if not as_json:
                click.echo(_line(_shown(cell), width))
    if as_json:
        click.echo(json.dumps([asdict(cell) for cell in cells]))


def _cells(
    client: Client,
    asked: list[tuple[TableInfo, ...]],
    skews: tuple[str, ...],
    requests: Requests,
    rng: np.random.Generator,
    bounds: _Bounds,
) -> Iterator[Cell]:
    """Each as soon as it is measured."""
    for tables, skew, size in product(asked, skews, requests.sizes):
        drawn = requests.draw(client, rng, tables, skew, size)
        for operation, dtype, table_count, call in requests.calls(client, tables, size):
            times, rate = _measure(call, drawn, bounds)
            p50, p95, p99 = (float(x) for x in np.percentile(times, (50, 95, 99)))
            yield Cell(
                *(name_of(tables), operation, size, skew, dtype, len(times)),
                *(p50, p95, p99, rate * size * table_count),
            )


def _measure(call: Call, batches: Sequence[Batch], bounds: _Bounds) -> tuple[list[float], float]:
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
                # At least one each, however short the time.
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


def _line(cells: tuple[Any, ...], width: int) -> str:
    table, operation, batch, skew, dtype, requests, p50, p95, p99, rows = cells
    return (
        f"{table:{width}}  {operation:23}  {batch:>8}  {skew:7}  {dtype:8}  {requests:>8}  "
        f"{p50:>9}  {p95:>9}  {p99:>9}  {rows:>11}"
    )
