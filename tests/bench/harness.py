"""What the benchmarks share: a plan, timing turn by turn, marks, tables and reports as JSON.

Whoever is compared is called in turns, a short round each, in one process and over the same ids: a
noisy machine then disturbs all of them alike. A round's figure is its median, and the figure that
is told the median of the rounds. Left out on purpose: statistics beyond that, for the ratios that
matter here are larger than the noise, or are not to be believed.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from support.server import RunningServer, children, run_cli

TABLE: Final = "t"
BATCHES: Final = (1, 64, 1024, 16_384)
SKEWS: Final = ("uniform", "zipf")
ZIPF_EXPONENT: Final = 1.05
# However slow somebody is, and however fast.
CALLS_MIN, CALLS_MAX = 3, 20_000
BATCH_COUNT: Final = 64

Ids = NDArray[np.int64]
Call = Callable[[Ids], object]
B = TypeVar("B")
"""What a call is given: ids, or whatever its request is made of."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: the big table's size, and how long a round of a cell takes.

    `folder` may be in memory; `disk` is on a disk, for what is synced or has to leave the memory.
    """

    folder: Path
    disk: Path
    rows: int = 4_000_000
    dim: int = 128
    round_seconds: float = 0.12
    rounds: int = 5
    groups: tuple[str, ...] = ()
    """Of a part that has groups, those that are measured; all when empty."""
    before: Path | None = None
    """Another tree of this repository, whose SDK and server are asked beside this one's."""

    @property
    def data_dir(self) -> Path:
        """Where the big table is, by name TABLE; see `make_table`."""
        return self.folder / "data"

    @property
    def weights(self) -> Path:
        """The big table's rows, a .npy that peers map just as gatherd does."""
        return self.data_dir / "tables" / TABLE / "v000001" / "weights.npy"

    def make_table(self) -> None:
        """Make the big table, unless it is there."""
        if not self.weights.exists():
            run_cli(
                *("create", TABLE, "--rows", str(self.rows), "--dim", str(self.dim)),
                *("--init", "uniform", "--seed", "0", "--data-dir", self.data_dir),
            )

    def rows_array(self) -> NDArray[np.float32]:
        """The big table, mapped."""
        mapped: NDArray[np.float32] = np.load(self.weights, mmap_mode="r")
        return mapped

    def serve(self, *arguments: str | Path) -> RunningServer:
        """A server of the big table."""
        log = self.folder / "server.log"
        return RunningServer("--data-dir", self.data_dir, *arguments, log_path=log)

    def serve_file(self, *arguments: str) -> RunningServer:
        """Another server, of the same file."""
        log = self.folder / "file-server.log"
        return RunningServer(f"{TABLE}={self.weights}", *arguments, log_path=log)


@dataclass(frozen=True)
class IdSource:
    """Draws ids of a table, uniformly or by Zipf's law with ZIPF_EXPONENT over all rows.

    The frequent rows lie scattered over the table, as they do when ids come from a hash.
    """

    rows: int
    seed: int = 1

    @cached_property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        weights = np.arange(1, self.rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT
        sums: NDArray[np.float64] = np.cumsum(weights)
        sums /= sums[-1]
        return sums

    def draw(self, skew: str, size: int) -> Ids:
        """`size` ids."""
        if skew == "uniform":
            return self._rng.integers(0, self.rows, size)
        ranks = np.searchsorted(self._cumulative, self._rng.random(size))
        # An odd number that no smaller table shares a factor with: a permutation of the rows.
        return ranks.clip(max=self.rows - 1).astype(np.int64) * 2_654_435_761 % self.rows

    def batches(self, skew: str, size: int, count: int = BATCH_COUNT) -> list[Ids]:
        """So many batches of `size` ids."""
        return [self.draw(skew, size) for _ in range(count)]


# --- timing ---


@dataclass(frozen=True, slots=True)
class Timing:
    """What one call takes, in µs; and CPU a call, of this process and of the server's."""

    p50: float
    p99: float
    calls: int
    client_cpu: float = 0.0
    server_cpu: float = 0.0

    def cell(self) -> str:
        """As tables show it."""
        return f"{number(self.p50)} ({number(self.p99)})"


def costs(ours: Timing, other: Timing, whose: str = "the floor's") -> str:
    """Where the time goes: CPU a call at both ends."""
    return (
        f"CPU a call {number(ours.server_cpu)} µs in the server, {number(ours.client_cpu)} in the "
        f"client; {whose} {number(other.server_cpu)} and {number(other.client_cpu)}"
    )


def number(value: float) -> str:
    """A figure with about three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that processes have taken so far, all their threads, to the nanosecond."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except (OSError, IndexError):
                continue  # it has just ended
    return total / 1e9


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    return [pid, *(one for child in children(pid) for one in process_tree(child))]


def interleave(
    calls: Mapping[str, Callable[[B], object]],
    batches: Sequence[B],
    plan: Plan,
    pids: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Timing]:
    """Time everybody's calls in turns. `pids`: by name, the processes that serve them."""
    pids = pids or {}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    cpu = {name: [0.0, 0.0] for name in calls}
    names = list(calls)
    for round_number in range(plan.rounds):
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            served_by = pids.get(name, ())
            calls[name](batches[0])
            server_before, client_before = cpu_seconds(served_by), time.process_time()
            times = timed(calls[name], batches, plan.round_seconds)
            cpu[name][0] += time.process_time() - client_before
            cpu[name][1] += cpu_seconds(served_by) - server_before
            medians[name].append(float(np.median(times)))
            taken[name] += times
    return {
        name: Timing(
            float(np.median(medians[name])),
            float(np.percentile(taken[name], 99)),
            len(taken[name]),
            cpu[name][0] * 1e6 / len(taken[name]),
            cpu[name][1] * 1e6 / len(taken[name]),
        )
        for name in calls
    }


def timed(call: Callable[[B], object], batches: Sequence[B], seconds: float) -> list[float]:
    """µs of each call, over the batches one after the other, for about so many seconds.

    A call with a method `timed` of its own is asked for them; see mixes/elsewhere.py.
    """
    elsewhere: Callable[[Sequence[B], float], list[float]] | None = getattr(call, "timed", None)
    if elsewhere is not None:
        return elsewhere(batches, seconds)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < CALLS_MIN or (len(taken) < CALLS_MAX and time.perf_counter() < end):
        batch = batches[len(taken) % len(batches)]
        begin = time.perf_counter()
        call(batch)
        taken.append((time.perf_counter() - begin) * 1e6)
    return taken


def check(calls: Mapping[str, Call], rows: NDArray[Any], ids: Ids) -> None:
    """Everybody has to answer with the very rows, or what is measured isn't a lookup."""
    expected = np.take(rows, ids, axis=0)
    for name, call in calls.items():
        if not np.array_equal(np.asarray(call(ids)), expected):
            raise AssertionError(f"{name} answers other rows than NumPy takes")


def cores() -> tuple[int, int] | None:
    """A core for the server and one for who asks; None on a machine with one."""
    there = sorted(os.sched_getaffinity(0))
    return (there[0], there[1]) if len(there) > 1 else None


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Threads and processes started meanwhile stay on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- what is told ---


@dataclass(frozen=True, slots=True)
class Mark:
    """What a figure has to reach, and what limits it where it doesn't."""

    what: str
    value: float
    bound: float
    at_most: bool = False
    unit: str = "×"
    limited_by: str = ""

    @property
    def is_met(self) -> bool:
        """Whether it is reached."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def cells(self) -> tuple[str, ...]:
        """Its row of the table of marks."""
        sense = "≤" if self.at_most else "≥"
        verdict = "met" if self.is_met else "MISSED"
        why = "" if self.is_met else self.limited_by
        value, bound = (f"{number(x)} {self.unit}".strip() for x in (self.value, self.bound))
        return self.what, value, f"{sense} {bound}", verdict, why


@dataclass(frozen=True, slots=True)
class Table:
    """Figures, as text; the first columns, as many as `labels`, say what a row is."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1

    def text(self) -> str:
        """For a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        aligned = (
            "   ".join(
                cell.ljust(width) if i < self.labels else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join((self.title, *aligned))

    def markdown(self) -> str:
        """For docs/benchmarks.md."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}"


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over batch sizes, on logarithmic axes."""

    name: str
    title: str
    y_label: str
    x: tuple[float, ...]
    series: dict[str, tuple[float, ...]]


@dataclass(slots=True)
class Report:
    """All that one part of the benchmark found."""

    title: str
    about: str = ""
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    verbatim: list[str] = field(default_factory=list)

    def mark_table(self) -> Table | None:
        """The marks, if there are any."""
        if not self.marks:
            return None
        header = ("mark", "is", "wanted", "", "what limits it")
        return Table("Marks", header, tuple(mark.cells() for mark in self.marks))

    def text(self) -> str:
        """For a terminal."""
        marks = self.mark_table()
        parts = [f"== {self.title} ==", *(table.text() for table in self.tables), *self.verbatim]
        parts += [f"skipped: {reason}" for reason in self.skipped]
        return "\n\n".join(parts + ([marks.text()] if marks else []))

    def save(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """What `save` wrote."""
        document = json.loads(path.read_text())
        document["tables"] = [
            Table(t["title"], tuple(t["header"]), tuple(map(tuple, t["rows"])), t["labels"])
            for t in document["tables"]
        ]
        document["charts"] = [Chart(**chart) for chart in document["charts"]]
        document["marks"] = [Mark(**mark) for mark in document["marks"]]
        return cls(**document)


def timing_table(title: str, column: str, cells: Mapping[int, Mapping[str, Timing]]) -> Table:
    """p50 (p99), a row a name and a column a size."""
    names = list(dict.fromkeys(name for timings in cells.values() for name in timings))
    rows = tuple(
        (name, *(one[name].cell() if name in one else "" for one in cells.values()))
        for name in names
    )
    return Table(title, (column, *(f"{size:,}" for size in cells)), rows)
