"""`make bench`: everything that is measured, in parts: `python tests/bench/bench.py [PART]…`.

Without parts, all of them, and then docs/benchmarks.md with its charts; `docs` alone writes that
from what the last runs of the parts found (kept in .cache/bench). Each part runs in a process of
its own with a time limit, so that none can hold up or disturb the others. `--quick` is for trying
the benchmark itself: a small table and short rounds, whose figures mean nothing.

While something is made faster: `bench.py mixes --quick` takes under a minute for many tables and
keys. `--group` picks others of what `mixes` measures, and `--before TREE` asks another checkout's
SDK and server in the same turns. What such a run finds is kept apart, and isn't written to docs.

The machine is noisy: read the ratios, and run it twice before you believe a small one.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / ".cache" / "bench"
# By part, its module, and seconds after which it is given up.
PARTS = {
    "latency": ("bench.latency", 360),
    "mixes": ("bench.mixes.part", 900),
    "throughput": ("bench.throughput", 300),
    "local": ("bench.local_reads", 120),
    "pooling": ("bench.pooled", 180),
    "async": ("bench.concurrent_lookups", 180),
    "bytes": ("bench.fewer_bytes", 180),
    "memory": ("bench.start_memory", 240),
    "updates": ("bench.updates", 420),
}
# They make their own tables, and no use of the big one.
OWN_TABLES = ("mixes",)
# The big table, Redis' copy of it and its overhead, and what the other parts write.
FOLDER_BYTES = 8 << 30
STOP_SECONDS = 30


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards: in memory where there is room, as a page cache would be."""
    shared = Path("/dev/shm")  # the folder in it is made by tempfile
    fits = shared.is_dir() and shutil.disk_usage(shared).free >= FOLDER_BYTES
    with tempfile.TemporaryDirectory(prefix="gatherd-bench-", dir=shared if fits else None) as name:
        yield Path(name)


def run_part(part: str, given: argparse.Namespace) -> None:
    """One part, in this process."""
    from bench.harness import Plan

    plan = Plan(given.folder, RESULTS, groups=tuple(given.groups), before=given.before)
    if given.quick:
        plan = replace(plan, rows=100_000, round_seconds=0.02, rounds=2)
    plan.disk.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(PARTS[part][0])
    if part not in OWN_TABLES:
        plan.make_table()
    elif given.quick:
        plan = replace(plan, round_seconds=0.05, rounds=3, groups=plan.groups or module.QUICK)
    report = module.run(plan)
    report.save(results(given) / f"{part}.json")
    print(report.text(), flush=True)


def results(given: argparse.Namespace) -> Path:
    """Where reports go: those of a run that leaves something out apart from the others."""
    return RESULTS / "partial" if given.quick or given.groups or given.before else RESULTS


def run_parts(parts: list[str], folder: Path, given: argparse.Namespace) -> list[str]:
    """Each in a process of its own; those that failed."""
    failed = []
    options = ["--quick"] * given.quick
    options += [word for group in given.groups for word in ("--group", group)]
    options += ["--before", str(given.before)] if given.before else []
    for part in parts:
        begin = time.monotonic()
        command = [sys.executable, __file__, part, "--folder", str(folder), *options]
        said = run_bounded(command, PARTS[part][1])
        if said:
            failed.append(f"{part}: {said}")
        print(f"\n({part}: {time.monotonic() - begin:.0f} s{', ' + said if said else ''})\n")
    return failed


def run_bounded(command: list[str], seconds: float) -> str:
    """Run it; empty, or how it failed."""
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # As Ctrl-C does it, so that it stops the servers that it started.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            return f"not done after {seconds} s"
    return f"exit status {status}" if status else ""


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "docs", []], metavar="PART")
    parser.add_argument("--folder", type=Path, help="where the table is, or is to be kept")
    parser.add_argument("--quick", action="store_true", help="try the benchmark, not the machine")
    parser.add_argument(
        "--group",
        dest="groups",
        action="append",
        default=[],
        metavar="GROUP",
        help="of mixes, only these; may be repeated",
    )
    parser.add_argument(
        "--before", type=Path, metavar="TREE", help="another checkout, asked beside this one"
    )
    given = parser.parse_args()
    if given.folder is not None and len(given.parts) == 1 and given.parts[0] in PARTS:
        run_part(given.parts[0], given)
        return
    parts = [part for part in given.parts or PARTS if part in PARTS]
    failed = []
    if parts:
        with scratch_folder() as temporary:
            failed = run_parts(parts, given.folder or temporary, given)
    if not given.parts or "docs" in given.parts:
        importlib.import_module("bench.write_docs").write(
            results(given), ROOT / "docs", list(PARTS)
        )
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    # This folder comes first for a script, and this file would be the package `bench`.
    sys.path[0] = str(ROOT / "tests")
    there = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], there] if there else [sys.path[0]])
    main()
