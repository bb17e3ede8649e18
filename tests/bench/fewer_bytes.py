"""Fewer bytes on the wire: 16-bit replies, and each row once (`dedup`), over Zipf ids.

`dedup` is measured when the SDK has it. Loopback has bandwidth to spare and a network hasn't: read
the bytes beside the times.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.counting_proxy import CountingProxy
from bench.harness import (
    BATCHES,
    TABLE,
    Call,
    Ids,
    IdSource,
    Plan,
    Report,
    Table,
    interleave,
    number,
    timing_table,
)
from gatherd import Client, tune_allocator

PLAIN = "float32"


def options() -> dict[str, dict[str, Any]]:
    """By name, what a lookup is given."""
    ways: dict[str, dict[str, Any]] = {
        PLAIN: {},
        "float16": {"dtype": "float16"},
        "bfloat16, widened": {"dtype": "bfloat16"},
    }
    if "dedup" in inspect.signature(Client.lookup).parameters:
        ways["float32, no dedup"] = {"dedup": False}
        ways["float32, dedup"] = {"dedup": True}
        ways["float16, dedup"] = {"dtype": "float16", "dedup": True}
    return ways


def run(plan: Plan) -> Report:
    """Latency and bytes of each way, over http://."""
    report = Report("Fewer bytes", "Zipf 1.05 ids, one blocking client over http://, malloc tuned.")
    tune_allocator()
    ways = options()
    if "float32, dedup" not in ways:
        report.skipped.append("dedup: this SDK has none")
    source = IdSource(plan.rows)
    with plan.serve() as server, Client(server.http) as client:
        calls = {name: _lookup(client, given) for name, given in ways.items()}
        _check(calls, plan.rows_array(), source.draw("zipf", 1024))
        cells = {size: interleave(calls, source.batches("zipf", size), plan) for size in BATCHES}
        report.tables.append(timing_table("p50 (p99), µs", "ids", cells))
        report.tables.append(_bytes(server.http, ways, source))
    return report


def _lookup(client: Client, given: dict[str, Any]) -> Callable[[Ids], Any]:
    return lambda ids: client.lookup(TABLE, ids, **given)


def _check(calls: dict[str, Call], rows: Any, ids: Ids) -> None:
    expected = np.take(rows, ids, axis=0)
    for name, call in calls.items():
        # bfloat16 keeps 8 bits, and float16 fewer of what is next to nothing.
        if not np.allclose(np.asarray(call(ids), np.float32), expected, rtol=2**-8, atol=1e-6):
            raise AssertionError(f"{name} answers other rows than NumPy takes")


def _bytes(url: str, ways: dict[str, dict[str, Any]], source: IdSource) -> Table:
    rows = []
    with CountingProxy(url.removeprefix("http://")) as proxy:
        with Client(f"http://{proxy.address}") as client:
            client.lookup(TABLE, [0])
            batches = {size: source.draw("zipf", size) for size in BATCHES}
            for name, given in ways.items():
                cells = [name]
                for ids in batches.values():
                    proxy.reset()
                    client.lookup(TABLE, ids, **given)
                    cells.append(f"{proxy.sent:,} + {proxy.received:,}")
                rows.append(tuple(cells))
            distinct = (number(np.unique(ids).size / ids.size) for ids in batches.values())
            rows.append(("share of ids that are distinct", *distinct))
    header = ("ids", *(f"{size:,}" for size in BATCHES))
    return Table("Bytes sent + received, HTTP's headers included", header, tuple(rows))
