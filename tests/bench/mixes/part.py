"""What model servers send, beside what they would ask instead: `bench.py mixes`.

Groups: `rows` (one table, every precision, statuses), `tables` (26 at once), `keys`, `bags`,
`json`, `pushes`, `callers` (16 at once) and `load` (one core, crowds, neighbours). Quick runs
measure QUICK, unless they are told which.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Final

from bench.harness import Plan, Report, Timing
from bench.mixes import concurrent, load, lookups, marks, pushes
from bench.mixes.elsewhere import Elsewhere, elsewhere
from bench.mixes.mix import Mix, measure, table
from bench.mixes.scene import BEFORE, TABLE_COUNT, Scene, Tables, scene
from bench.peers import REDIS
from bench.updates import REDIS_DURABLE
from gatherd import tune_allocator

LOOKUPS: Final[Mapping[str, tuple[str, Callable[[Scene], Iterator[Mix]]]]] = {
    "rows": ("Rows of one table", lookups.rows),
    "tables": (f"Rows of {TABLE_COUNT} tables", lookups.tables),
    "keys": ("Rows by key", lookups.keys),
    "bags": ("Bags, pooled", lookups.bags),
    "json": ("REST, JSON", lookups.json),
}
GROUPS: Final = (*LOOKUPS, "pushes", "callers", "load")
QUICK: Final = ("tables", "keys")


def run(plan: Plan) -> Report:
    """All of a plan's groups, and the marks."""
    report = Report(
        "What model servers send",
        f"{TABLE_COUNT} tables of {Tables.of(plan).rows:,} rows, dim {plan.dim}, uniform ids; by "
        "key, in bags, in half precision, pushes. One blocking client unless it says otherwise, "
        "malloc tuned. CPU is in µs a request, of this process and of those that serve. The last "
        "column is how many times as fast as Redis' MGET of the same rows, or its durable MSET. "
        "Peers' bags are pooled by NumPy. All answers are compared with NumPy's before. The "
        f"machine's load when it began: {os.getloadavg()[0]:.1f}.",
    )
    tune_allocator()
    groups = plan.groups or GROUPS
    if unknown := set(groups) - set(GROUPS):
        raise SystemExit(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    with scene(plan) as there, ExitStack() as stack:
        before = None
        if plan.before is not None:
            data_dir = there.tables.linked(BEFORE)
            log = plan.folder / "mixes.log"
            before = stack.enter_context(elsewhere(plan.before, data_dir, log))
        for group in groups:
            _run_group(group, there, before, report)
        report.skipped += there.skipped
    return report


def _run_group(group: str, there: Scene, before: Elsewhere | None, report: Report) -> None:
    if group in LOOKUPS:
        title, mixes = LOOKUPS[group]
        timings = {mix.name: measure(there, mix, before) for mix in mixes(there)}
        report.tables.append(table(title, timings, REDIS))
        report.marks += marks.of_lookups(timings)
    elif group == "pushes":
        pushed: dict[str, dict[str, Timing]] = dict(pushes.measure(there))
        report.tables.append(table("Pushes", pushed, REDIS_DURABLE))
        report.marks += marks.of_pushes(pushed)
    elif group == "callers":
        report.tables.append(concurrent.table(dict(concurrent.measure(there))))
    else:
        rates, beside = load.rates(there), load.beside(there)
        report.tables += [load.rate_table(rates), load.beside_table(beside)]
        report.marks += marks.of_load(rates, beside)
