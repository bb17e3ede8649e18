"""A process's own recorders, and a view of those of all processes."""

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter_ns
from typing import Final

from gatherd_server.observe.metrics.exposition import Sample, exposition
from gatherd_server.observe.metrics.failures import Failures
from gatherd_server.observe.metrics.names import (
    PROCESS_RESTARTS,
    PROCESS_UP,
    RELOADS,
    REQUEST_DURATION,
    TABLE_LOOKUP_BYTES,
    TABLE_LOOKUP_ROWS,
    TABLE_LOOKUPS,
    TABLE_MISSING,
    TABLE_SUPERSEDED_LOOKUPS,
)
from gatherd_server.observe.metrics.processes import process_samples
from gatherd_server.observe.metrics.recorder import (
    MetricsPage,
    Pulse,
    Recorder,
    RequestSeries,
    Series,
    make_page,
)
from gatherd_server.observe.tracing import Spans, TraceExport, open_spans

now_ns: Final = perf_counter_ns
"""The clock that requests are timed by."""

MISSED_IDS: Final = "id"
MISSED_KEYS: Final = "key"

_BOUNDS: Final = REQUEST_DURATION.bounds
_SUPERVISOR: Final = 0
_WRITER: Final = 1
_WORKERS: Final = 2
_PLACES_A_WORKER: Final = 2


def make_server_page(workers: int) -> int:
    """Make the page of a server with so many `workers`; returns its descriptor."""
    return make_page(_place_count(workers))


def _place_count(workers: int) -> int:
    return _WORKERS + _PLACES_A_WORKER * workers


class Telemetry:
    """The metrics of one process of a server.

    `loop` is only for the event loop's thread, `threads` for all threads; `writer` is for the
    writer, in whichever process it runs.
    """

    def __init__(
        self,
        page: MetricsPage | None = None,
        *,
        worker: int | None = None,
        has_writer: bool = False,
        is_told: bool = True,
        is_per_table: bool = True,
        is_access_logged: bool = False,
        spans: Spans | None = None,
    ) -> None:
        """For worker number `worker`, with or without the writer, or for a writer process.

        `is_told` says whether anybody may read the metrics over HTTP, and `is_per_table` whether
        tables are told apart: otherwise all count as the one without a name.
        """
        self._page = page
        self.is_told = is_told
        self.is_per_table = is_per_table
        self.is_access_logged = is_access_logged
        self.spans = spans
        """The maker of traces; None when they are off."""
        self.writer = Recorder(_place(page, _WRITER) if has_writer else None)
        first = None if worker is None else _WORKERS + _PLACES_A_WORKER * worker
        self.loop = Recorder(_place(page, first))
        self.threads = Recorder(_place(page, None if first is None else first + 1))
        self.pulse = Pulse([self.loop, self.threads, self.writer])
        self.failures = Failures(self.threads)
        self.pulse.before(self.failures.flush)
        self._requests: dict[tuple[str, str], RequestSeries] = {}
        self._tables: dict[str, TableSeries] = {}

    @classmethod
    def inherited(
        cls,
        fd: int,
        workers: int,
        *,
        worker: int | None = None,
        has_writer: bool,
        is_told: bool = False,
        is_per_table: bool = True,
        is_access_logged: bool = False,
        traces: TraceExport = TraceExport.OFF,
    ) -> "Telemetry":
        """For a child process that got the page's descriptor from the supervisor.

        ConfigError when the packages that traces need aren't installed.
        """
        spans = open_spans(traces, "writer" if worker is None else f"worker-{worker}")
        page = MetricsPage(fd, _place_count(workers))
        return cls(
            page,
            worker=worker,
            has_writer=has_writer,
            is_told=is_told,
            is_per_table=is_per_table,
            is_access_logged=is_access_logged,
            spans=spans,
        )

    def close(self) -> None:
        """Publish a last time, and send the spans that wait."""
        self.pulse.close()
        if self.spans is not None:
            self.spans.close()

    def requests(self, wire: str, procedure: str) -> RequestSeries:
        """The counters of a procedure on a wire, only for the loop's thread."""
        key = (wire, procedure)
        series = self._requests.get(key)
        if series is None:
            series = self._requests[key] = RequestSeries(self.loop, wire, procedure)
        return series

    def table(self, name: str) -> "TableSeries":
        """The counters of an existing table, only for the loop's thread."""
        name = name if self.is_per_table else ""
        series = self._tables.get(name)
        if series is None:
            series = self._tables[name] = TableSeries(self.loop, name)
        return series

    def gathered(self, name: str, rows: int, byte_count: int, lookups: int = 1) -> None:
        """Count what lookups gathered from an existing table, on any thread."""
        name = name if self.is_per_table else ""
        self.threads.add(TABLE_LOOKUPS, name, value=lookups)
        self.threads.add(TABLE_LOOKUP_ROWS, name, value=rows)
        self.threads.add(TABLE_LOOKUP_BYTES, name, value=byte_count)

    def missed(self, name: str, by: str, count: int) -> None:
        """Count ids or keys (`by` is MISSED_IDS or MISSED_KEYS) without a row, on any thread."""
        if count:
            self.threads.add(TABLE_MISSING, name if self.is_per_table else "", by, value=count)

    def superseded(self, name: str, lookups: int = 1) -> None:
        """Count lookups that named a version that wasn't live, on any thread."""
        table = name if self.is_per_table else ""
        self.threads.add(TABLE_SUPERSEDED_LOOKUPS, table, value=lookups)

    def document(self, samples: Iterable[Sample]) -> str:
        """The counts of all processes, with `samples`, in Prometheus' format."""
        self.pulse.beat()
        return exposition(self._series(), [*samples, *process_samples(self._pids())])

    def _series(self) -> Iterator[Series]:
        if self._page is not None:
            yield from self._page.series()
            return
        for recorder in (self.loop, self.threads, self.writer):
            yield from recorder.series()

    def _pids(self) -> Mapping[str, int]:
        if self._page is None:
            return {}
        names: dict[int, str] = {}
        for place, pid in self._page.pids().items():
            if place >= _WORKERS:
                names[pid] = f"worker-{(place - _WORKERS) // _PLACES_A_WORKER}"
            else:
                # A writer in a worker's process is shown under the worker's name.
                names.setdefault(pid, "writer" if place == _WRITER else "supervisor")
        return {name: pid for pid, name in names.items()}


class TableSeries:
    """The counters of a table's lookups, for a single thread."""

    __slots__ = ("cells", "first")

    def __init__(self, recorder: Recorder, table: str) -> None:
        self.cells = recorder.cells
        self.first = (
            recorder.first(TABLE_LOOKUPS, table),
            recorder.first(TABLE_LOOKUP_ROWS, table),
            recorder.first(TABLE_LOOKUP_BYTES, table),
        )

    def gathered(self, is_first: bool, rows: int, byte_count: int) -> None:
        """Count a piece of a lookup's rows."""
        cells, first = self.cells, self.first
        cells[first[0]] += is_first
        cells[first[1]] += rows
        cells[first[2]] += byte_count


class SupervisorMetrics:
    """The supervisor's counters, published at once, because they change seldom."""

    def __init__(self, fd: int, workers: int) -> None:
        """Uses the page with the descriptor `fd`."""
        self._recorder = Recorder(_place(MetricsPage(fd, _place_count(workers)), _SUPERVISOR))
        # From zero on, because an alert has to see the first one.
        self._recorder.first(RELOADS, "refused")
        self._told()

    def started(self, process: str, *, is_restart: bool) -> None:
        """Count the start of a child."""
        self._recorder.set(PROCESS_UP, process, value=0)
        self._recorder.add(PROCESS_RESTARTS, process, value=int(is_restart))
        self._told()

    def is_up(self, process: str, is_up: bool) -> None:
        """Note that a child is ready, or that it has ended."""
        self._recorder.set(PROCESS_UP, process, value=int(is_up))
        self._told()

    def reloaded(self, outcome: str) -> None:
        """Count a reload, done or refused."""
        self._recorder.add(RELOADS, outcome)
        self._told()

    def _told(self) -> None:
        self._recorder.publish()


def _place(page: MetricsPage | None, number: int | None) -> memoryview | None:
    return None if page is None or number is None else page.place(number)
