"""Every metric: its name, type, labels and meaning. A test compares docs/operations.md with it.

Counts are whole numbers everywhere; times are counted in nanoseconds and shown in seconds.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

NANOSECOND: Final = 1e-9


class MetricKind(Enum):
    """A metric's type, as Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. It shows values times `scale`; `bounds` are a histogram's, unscaled."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    scale: float = 1
    bounds: tuple[int, ...] = ()

    @property
    def cell_count(self) -> int:
        """Numbers in one series: a histogram has its buckets, the one above them, and the sum."""
        return len(self.bounds) + 2 if self.kind is MetricKind.HISTOGRAM else 1


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_US: Final = 1000
_MS: Final = 1000 * _US
_S: Final = 1000 * _MS
# From a lookup of one id to a snapshot under load.
_REQUEST_BOUNDS: Final = tuple(
    step * unit
    for unit, steps in (
        (_US, (10, 25, 50, 100, 250, 500)),
        (_MS, (1, 2.5, 5, 10, 25, 50, 100, 250, 500)),
        (_S, (1, 2.5, 5, 10)),
    )
    for step in steps
)
_TIMES: Final = tuple(map(int, _REQUEST_BOUNDS))
_LONG_TIMES: Final = tuple(int(step * _S) for step in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100))
_BATCHES: Final = tuple(2**power for power in range(11))

REQUESTS = Metric("gatherd_requests_total", _C, "Requests answered.", ("wire", "procedure", "code"))
REQUEST_DURATION = Metric(
    "gatherd_request_duration_seconds",
    _H,
    "Time from a request's head to the end of its answer in the server.",
    ("wire", "procedure"),
    NANOSECOND,
    _TIMES,
)
REQUESTS_IN_FLIGHT = Metric(
    "gatherd_requests_in_flight", _G, "Requests admitted and not yet answered."
)
UPDATES_IN_FLIGHT = Metric(
    "gatherd_updates_in_flight", _G, "Those of them that are updates and changes of tables."
)
SHED_REQUESTS = Metric(
    "gatherd_shed_requests_total", _C, "Requests turned away by a full server.", ("limit",)
)
ERRORS = Metric(
    "gatherd_errors_total", _C, "Requests answered with an error, by its class.", ("reason",)
)
CONNECTIONS = Metric("gatherd_http_connections", _G, "HTTP connections open.")
CLOSED_CONNECTIONS = Metric(
    "gatherd_closed_connections_total",
    _C,
    "HTTP connections without a valid request, closed for others at connections_max.",
)

REFUSED_CONNECTIONS = Metric(
    "gatherd_refused_connections_total", _C, "HTTP connections ended by the server.", ("reason",)
)

TABLES = Metric("gatherd_tables", _G, "Tables, refused ones included.")
TABLE_LOOKUPS = Metric(
    "gatherd_table_lookups_total", _C, "Gathers from a table; a request can have many.", ("table",)
)
TABLE_LOOKUP_ROWS = Metric(
    "gatherd_table_lookup_rows_total", _C, "Rows gathered, pooled ones too.", ("table",)
)
TABLE_LOOKUP_BYTES = Metric(
    "gatherd_table_lookup_bytes_total", _C, "Bytes of vectors put into replies.", ("table",)
)
TABLE_MISSING = Metric(
    "gatherd_table_missing_total",
    _C,
    "Ids and keys of lookups that have no row, refused or not.",
    ("table", "by"),
)
TABLE_SUPERSEDED_LOOKUPS = Metric(
    "gatherd_table_superseded_lookups_total",
    _C,
    "Those of the gathers that named a version that wasn't live.",
    ("table",),
)
TABLE_UPDATED_ROWS = Metric(
    "gatherd_table_updated_rows_total", _C, "Ids in updates that were committed.", ("table",)
)
TABLE_CREATED_ROWS = Metric(
    "gatherd_table_created_rows_total",
    _C,
    "Rows of an open table that updates created.",
    ("table",),
)
TABLE_REMOVED_ROWS = Metric(
    "gatherd_table_removed_rows_total",
    _C,
    "Rows of an open table that were deleted, evicted or expired.",
    ("table", "cause"),
)
TABLE_NOT_ADMITTED_KEYS = Metric(
    "gatherd_table_not_admitted_keys_total",
    _C,
    "Keys of an open table that an update counted and that got no row yet.",
    ("table",),
)
TABLE_ROWS = Metric("gatherd_table_rows", _G, "Rows of the live version.", ("table",))
TABLE_BYTES = Metric(
    "gatherd_table_bytes", _G, "Bytes of rows and keys of the live version.", ("table",)
)
TABLE_RESIDENT_BYTES = Metric(
    "gatherd_table_resident_bytes", _G, "Bytes of the live rows that are in memory.", ("table",)
)
TABLE_VERSION = Metric("gatherd_table_version", _G, "The live version's number.", ("table",))
TABLE_REFUSED = Metric(
    "gatherd_table_refused", _G, "1 for a table that can't be served, else 0.", ("table",)
)

PUSHES = Metric("gatherd_pushes_total", _C, "Updates that the writer answered.", ("outcome",))
COMMIT_DURATION = Metric(
    "gatherd_commit_duration_seconds",
    _H,
    "Time to compute, log, sync and store one batch of updates.",
    (),
    NANOSECOND,
    _TIMES,
)
COMMIT_PUSHES = Metric("gatherd_commit_pushes", _H, "Updates in one batch.", (), bounds=_BATCHES)
LOG_WRITTEN_BYTES = Metric(
    "gatherd_log_written_bytes_total", _C, "Bytes of updates and changes put into the log."
)
LOG_BYTES = Metric("gatherd_log_bytes", _G, "Bytes of the log's files, reserved ones included.")
LOG_SEGMENTS = Metric("gatherd_log_segments", _G, "Files of the log.")
QUEUED_PUSHES = Metric("gatherd_queued_pushes", _G, "Updates that wait for the writer.")
QUEUED_BYTES = Metric("gatherd_queued_bytes", _G, "Bytes of the updates that wait.")
COMMITTED_LSN = Metric("gatherd_committed_lsn", _G, "The last LSN that the log holds.")
APPLIED_LSN = Metric("gatherd_applied_lsn", _G, "The last LSN that every lookup sees.")
UPDATES_UP = Metric(
    "gatherd_updates_up",
    _G,
    "1 while updates are taken; 0 when the writer is stopped, hung, without room or not reached.",
)
WRITER_HUNG = Metric("gatherd_writer_hung", _G, "1 while the writer gives no sign of life, else 0.")
CHECKPOINT_LSN = Metric("gatherd_checkpoint_lsn", _G, "Up to where the tables are durable.")
CHECKPOINT_TIMESTAMP = Metric(
    "gatherd_checkpoint_timestamp_seconds",
    _G,
    "Unix time of the last checkpoint, or of the writer's start.",
    (),
    NANOSECOND,
)
CHECKPOINT_DURATION = Metric(
    "gatherd_checkpoint_duration_seconds",
    _H,
    "Time that one checkpoint took.",
    (),
    NANOSECOND,
    _LONG_TIMES,
)
CHECKPOINT_FAILURES = Metric("gatherd_checkpoint_failures_total", _C, "Checkpoints that failed.")
SNAPSHOT_TIMESTAMP = Metric(
    "gatherd_snapshot_timestamp_seconds",
    _G,
    "Unix time of the newest snapshot; 0 when there is none.",
    (),
    NANOSECOND,
)
SNAPSHOTS = Metric("gatherd_snapshots_total", _C, "Snapshots asked for.", ("outcome",))
BACKUP_TIMESTAMP = Metric(
    "gatherd_backup_timestamp_seconds",
    _G,
    "Unix time at which the newest backup was taken; 0 while none is known.",
    (),
    NANOSECOND,
)
BACKUPS = Metric(
    "gatherd_backups_total", _C, "Snapshots copied away, and tries of it that failed.", ("outcome",)
)

PROCESS_UP = Metric(
    "gatherd_process_up", _G, "1 while a process is up and ready, else 0.", ("process",)
)
PROCESS_RESTARTS = Metric(
    "gatherd_process_restarts_total", _C, "Starts in a dead process's place.", ("process",)
)
PROCESS_MINOR_FAULTS = Metric(
    "gatherd_process_minor_page_faults_total",
    _C,
    "Page faults that needed no disk.",
    ("process",),
)
PROCESS_MAJOR_FAULTS = Metric(
    "gatherd_process_major_page_faults_total",
    _C,
    "Page faults that waited for a disk.",
    ("process",),
)
PROCESS_CPU = Metric(
    "gatherd_process_cpu_seconds_total", _C, "Processor time, user and system.", ("process",)
)
PROCESS_MEMORY = Metric(
    "gatherd_process_resident_memory_bytes",
    _G,
    "Memory of a process, the tables' shared pages included.",
    ("process",),
)
PROCESS_START = Metric(
    "gatherd_process_start_time_seconds", _G, "Unix time of a process's start.", ("process",)
)
TOKENS_REFUSED = Metric(
    "gatherd_tokens_refused",
    _G,
    "1 while the token file isn't taken as it is, and older tokens are good.",
)
HELD_BODY_BYTES = Metric(
    "gatherd_held_body_bytes", _G, "Bytes of request bodies over 64 KiB that are held."
)
RELOADS = Metric(
    "gatherd_reloads_total", _C, "Reloads of settings and of served files by SIGHUP.", ("outcome",)
)
BUILD = Metric(
    "gatherd_build_info",
    _G,
    "1; the labels have the release, its commit, and Python's version.",
    ("version", "commit", "python"),
)

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME: Final = {metric.name: metric for metric in METRICS}
