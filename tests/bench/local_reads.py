"""`local:` beside `np.take` on an ordinary array in this process's memory, of the same rows.

The array is a copy in anonymous memory, where the kernel may use huge pages; a mapped file has
none.
"""

from functools import partial

import numpy as np

from bench.harness import (
    BATCHES,
    SKEWS,
    TABLE,
    Call,
    Ids,
    IdSource,
    Mark,
    Plan,
    Report,
    check,
    interleave,
    timing_table,
)
from gatherd import Client, tune_allocator

TAKE, FAST, LOCAL, LOCAL_OUT = "np.take", "np.take, out=, clip", "gatherd local:", "local:, out="
MICROSECONDS = {1: 12.0, 64: 20.0}


def run(plan: Plan) -> Report:
    """Latency of reads on the same machine."""
    report = Report(
        "Same machine: local:", "p50 (p99) in µs by ids; malloc tuned, for np.take as well."
    )
    tune_allocator()
    rows = np.array(plan.rows_array())
    source = IdSource(plan.rows)
    out = {size: np.empty((size, plan.dim), np.float32) for size in BATCHES}
    with Client(f"local:{plan.data_dir}") as client:

        def lookup_out(ids: Ids) -> object:
            return client.lookup(TABLE, ids, out=out[ids.size])

        calls: dict[str, Call] = {
            TAKE: partial(_take, rows),
            FAST: lambda ids: np.take(rows, ids, axis=0, out=out[ids.size], mode="clip"),
            LOCAL: partial(client.lookup, TABLE),
            LOCAL_OUT: lookup_out,
        }
        check(calls, rows, source.draw("uniform", 1024))
        for skew in SKEWS:
            cells = {size: interleave(calls, source.batches(skew, size), plan) for size in BATCHES}
            report.tables.append(timing_table(f"{skew} ids", "ids", cells))
            for size, timings in cells.items():
                p50, at = timings[LOCAL].p50, f"{size:,} ids, {skew}"
                if size in MICROSECONDS:
                    why = "Python between the call and np.take: checks of ids, plan, result"
                    mark = Mark(f"local: p50, {at}", p50, MICROSECONDS[size], True, "µs", why)
                else:
                    why = "4 KiB pages: a TLB miss a row, where the array may have huge pages"
                    ratio = p50 / timings[TAKE].p50
                    mark = Mark(f"local: beside np.take, {at}", ratio, 1.25, True, limited_by=why)
                report.marks.append(mark)
    return report


def _take(rows: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", ids: Ids) -> object:
    return np.take(rows, ids, axis=0)
