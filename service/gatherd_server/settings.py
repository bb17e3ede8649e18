"""Every setting of `gatherd serve`: its name, default, bounds and purpose.

configuration.py reads them from the command line, the environment (GATHERD_…) and a TOML file.
Tests compare the options, their help and docs/configuration.md with this class.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gatherd.busy_poll import BUSY_POLL_US, BUSY_POLL_US_MAX
from gatherd.errors import BadFile, GatherdError
from gatherd.store.catalog import check_table_name
from gatherd.store.format import open_readonly, read_layout, table_name_of
from gatherd.store.table import Preload
from gatherd_server.access.tls import TlsFiles
from gatherd_server.access.web import Web, check_web
from gatherd_server.data_dir.uploads.spec import UploadLimits
from gatherd_server.errors import ConfigError
from gatherd_server.link.heartbeat import HUNG_SECONDS
from gatherd_server.observe.logs import LogFormat
from gatherd_server.observe.tracing import TraceExport
from gatherd_server.snapshots.backups.store import check_location
from gatherd_server.types import Durability, Limits, NeighborsLimits, TableSource, WriterLimits

# The fields that SIGHUP changes in a running server; the rest is read once.
RELOADABLE = ("log_level", "requests_in_flight_max")

MIB = 1 << 20
# A process gets so long on top of drain_seconds to close, before it is killed.
STOP_MARGIN_SECONDS = 5.0


class ServeSettings(BaseModel):
    """The settings of `gatherd serve`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    tables: tuple[str, ...] = Field(
        (),
        description="Files to serve where they lie: NAME=FILE.npy or NAME=FILE.safetensors#TENSOR.",
    )
    data_dir: Path | None = Field(
        None, description="Data dir whose tables (made by create or import) are served."
    )
    default_vector: tuple[str, ...] = Field(
        (),
        description="NAME=FILE.npy: a file table's vector for missing ids, instead of the mean.",
    )
    http: str = Field("127.0.0.1:8000", description="HOST:PORT of REST and Connect.")
    grpc: str = Field("127.0.0.1:8001", description="HOST:PORT of gRPC.")
    unix: Path | None = Field(
        None, description="Path of a Unix socket that also answers REST and Connect."
    )
    workers: int = Field(1, ge=1, le=256, description="Worker processes; they share one copy.")
    preload: Preload = Field(
        Preload.AUTO,
        description="Bring tables into memory before serving: auto does it for those that fit.",
    )
    tokens: Path | None = Field(
        None,
        description="File of the bearer tokens that are taken, as `gatherd token` writes it; "
        "read again when it changes.",
    )
    open_metrics: bool = Field(False, description="Answer /metrics without a token.")
    tls_cert: Path | None = Field(
        None, description="PEM file of the certificate, for TLS on both ports; needs tls_key."
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of authorities: only clients with a certificate of theirs connect.",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins whose pages may ask by a browser, as https://notebook.example; "
        "* for all.",
    )
    root_path: str = Field(
        "", description="Path prefix at which a proxy serves the HTTP port, as /tables."
    )
    insecure: bool = Field(
        False,
        description="Serve on addresses that others reach without asking who they are.",
    )
    reflection: bool = Field(False, description="Answer gRPC server reflection.")
    # Threads start when they are needed. An update holds one until it is durable, so there are
    # updates_in_flight_max more of them.
    grpc_threads: int = Field(
        64,
        ge=1,
        le=1024,
        description="Unary gRPC calls that a worker answers at once, updates aside.",
    )
    streams_max: int = Field(
        32, ge=1, le=4096, description="gRPC lookup streams open at once in a worker."
    )
    connection_calls_max: int = Field(
        100,
        ge=1,
        le=65_536,
        description="gRPC calls under way on one connection; its client lets more wait.",
    )
    connection_streams_max: int = Field(
        8, ge=1, le=4096, description="gRPC lookup streams open at once on one connection."
    )
    message_seconds: float = Field(
        60.0, ge=1, le=3600, description="Seconds for the message of a unary gRPC call to come."
    )
    request_bytes_max: int = Field(
        16 * MIB, ge=1024, le=1024 * MIB, description="Bytes of one request's body."
    )
    reply_bytes_max: int = Field(
        64 * MIB, ge=1024, le=2047 * MIB, description="Bytes of one reply's vectors and statuses."
    )
    default_mean_bytes_max: int = Field(
        8192 * MIB,
        ge=0,
        le=2**50,
        description="Bytes of a table whose rows are averaged where it has no default vector; of a "
        'larger one missing="default" is refused.',
    )
    ids_max: int = Field(1_048_576, ge=1, le=2**31, description="Ids in one request.")
    tables_max: int = Field(256, ge=1, le=65_536, description="Tables in one request.")
    neighbors_in_flight_max: int = Field(
        2,
        ge=0,
        le=1024,
        description="Searches for neighbors under way in one worker; more are refused, 0 for none.",
    )
    neighbors_threads: int = Field(
        2, ge=1, le=256, description="Threads of one search for neighbors; lookups go before them."
    )
    neighbors_k_max: int = Field(
        1000, ge=1, le=1_000_000, description="Neighbors of one query that may be asked for."
    )
    neighbors_queries_max: int = Field(
        256, ge=1, le=65_536, description="Queries in one search for neighbors."
    )
    neighbors_work_max: int = Field(
        2**38,
        ge=1,
        le=2**60,
        description="Rows times dim times queries of one search for neighbors.",
    )
    requests_in_flight_max: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Requests under way in one worker, updates aside; more are refused.",
    )
    updates_in_flight_max: int = Field(
        256,
        ge=1,
        le=4096,
        description="Updates and changes of tables under way in one worker; more are refused.",
    )
    writer_hung_seconds: float = Field(
        HUNG_SECONDS,
        ge=1,
        le=3600,
        description="Seconds without a sign of life from the writer after which updates are "
        "refused at once, until it gives one.",
    )
    bodies_bytes_max: int = Field(
        256 * MIB,
        ge=1024,
        le=65_536 * MIB,
        description="Bytes of all bodies over 64 KiB that one worker holds; a token has half.",
    )
    connections_max: int = Field(
        4096, ge=1, le=1_000_000, description="HTTP connections open in one worker."
    )
    grpc_connections_max: int = Field(
        4096, ge=1, le=1_000_000, description="gRPC connections open in one worker."
    )
    fast_path: bool = Field(
        True,
        description="Answer lookups by one kernel, over HTTP without ASGI; off only to compare.",
    )
    busy_poll_us: int = Field(
        BUSY_POLL_US,
        ge=0,
        le=BUSY_POLL_US_MAX,
        description="µs a worker waits awake for the next lookup over HTTP, while that pays.",
    )
    backlog: int = Field(
        2048, ge=1, le=65_535, description="HTTP connections waiting for a worker."
    )
    keep_alive_seconds: int = Field(
        75, ge=1, le=3600, description="Seconds until an idle HTTP connection is closed."
    )
    receive_seconds: float = Field(
        20.0,
        ge=1,
        le=3600,
        description="Seconds for an HTTP request's head to come, and its body beyond a second for "
        "each 16 KiB, and without any progress in reading a reply.",
    )
    durability: Durability = Field(
        Durability.FSYNC,
        description="When an update is acknowledged: fsync, when it is on the disk; os, when it "
        "survives the process, but not the machine.",
    )
    checkpoint_seconds: float = Field(
        60.0,
        ge=0.1,
        le=86_400,
        description="Seconds between checkpoints, which make tables durable and cut the log.",
    )
    checkpoint_bytes: int = Field(
        256 * MIB, ge=MIB, le=1024 * 1024 * MIB, description="Bytes of the log that force one."
    )
    segment_bytes: int = Field(
        64 * MIB, ge=64 * 1024, le=4096 * MIB, description="Bytes of one file of the log."
    )
    batch_pushes_max: int = Field(
        1024, ge=1, le=65_536, description="Updates that are committed together."
    )
    batch_bytes_max: int = Field(
        32 * MIB, ge=1024, le=1024 * MIB, description="Bytes of the updates committed together."
    )
    queued_pushes_max: int = Field(
        4096, ge=1, le=1_000_000, description="Updates that wait to be committed; more are refused."
    )
    queued_bytes_max: int = Field(
        256 * MIB, ge=1024, le=65_536 * MIB, description="Bytes of the updates that wait."
    )
    keep_versions: int = Field(
        2, ge=0, le=10_000, description="Superseded versions of a table that are kept."
    )
    uploads_max: int = Field(
        16, ge=0, le=4096, description="Uploads of tables under way; more are refused, 0 for none."
    )
    uploads_bytes_max: int = Field(
        2**40, ge=MIB, le=2**60, description="Bytes on the disk of all uploads under way."
    )
    upload_seconds: float = Field(
        86_400.0,
        ge=1,
        le=31_536_000,
        description="Seconds after its last chunk until an upload is deleted.",
    )
    snapshot_dir: Path | None = Field(
        None, description="Folder that snapshots go into; without it there are none."
    )
    snapshot_seconds: float = Field(
        0.0, ge=0, le=31_536_000, description="Seconds between snapshots by schedule; 0 for none."
    )
    snapshot_keep: int = Field(
        3, ge=1, le=10_000, description="Unnamed snapshots that the schedule keeps."
    )
    backup_url: str | None = Field(
        None,
        description="Where every snapshot is copied to: a folder, or what fsspec has a package "
        "for, as s3://bucket/folder; needs snapshot_dir.",
    )
    backup_keep: int = Field(
        7, ge=1, le=10_000, description="Unnamed snapshots that stay in backup_url."
    )
    unready_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Seconds that /readyz says no before the ports close when stopping, for "
        "balancers to notice; requests are answered meanwhile.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, le=3600, description="Seconds that requests under way get when stopping."
    )
    access_log: bool = Field(
        False,
        description="Log a line for each request; all are then answered the general way, without "
        "fast_path.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error."
    )
    log_format: LogFormat = Field(
        LogFormat.TEXT, description="A line of the log: text for people, json for machines."
    )
    metrics: bool = Field(True, description="Answer GET /metrics on the HTTP port.")
    metrics_per_table: bool = Field(
        True, description="Count tables each by its name; else all of them as one, for very many."
    )
    traces: TraceExport = Field(
        TraceExport.OFF,
        description="Where OpenTelemetry spans go: off, otlp (by OTEL_EXPORTER_OTLP_…), console.",
    )

    def limits(self) -> Limits:
        """The bounds that transports and the engine hold requests to."""
        return Limits(
            self.request_bytes_max,
            self.reply_bytes_max,
            self.ids_max,
            self.tables_max,
            self.requests_in_flight_max,
            self.updates_in_flight_max,
            self.bodies_bytes_max,
            self.default_mean_bytes_max,
            NeighborsLimits(
                self.neighbors_in_flight_max,
                self.neighbors_threads,
                self.neighbors_k_max,
                self.neighbors_queries_max,
                self.neighbors_work_max,
            ),
        )

    def upload_limits(self) -> UploadLimits:
        """The bounds on uploads."""
        return UploadLimits(self.uploads_max, self.uploads_bytes_max, self.upload_seconds)

    @property
    def stop_seconds(self) -> float:
        """How long a stop may take; a process that isn't done then is killed."""
        return self.unready_seconds + self.drain_seconds + STOP_MARGIN_SECONDS

    def tls_files(self) -> TlsFiles | None:
        """The files of TLS, None without it. ConfigError when one is missing."""
        if self.tls_cert is None and self.tls_key is None:
            if self.tls_client_ca is not None:
                raise ConfigError(
                    "tls_client_ca needs tls_cert and tls_key beside it",
                    {"settings": "tls_client_ca"},
                )
            return None
        if self.tls_cert is None or self.tls_key is None:
            given = "tls_key" if self.tls_cert is None else "tls_cert"
            raise ConfigError("TLS takes both tls_cert and tls_key", {"settings": given})
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)

    def web(self) -> Web:
        """How pages and proxies reach the HTTP port. ConfigError for a wrong origin or prefix."""
        return check_web(self.cors_origins, self.root_path)

    def writer_limits(self) -> WriterLimits:
        """The settings and limits of the writer."""
        return WriterLimits(
            segment_bytes=self.segment_bytes,
            batch_pushes_max=self.batch_pushes_max,
            batch_bytes_max=self.batch_bytes_max,
            queued_pushes_max=self.queued_pushes_max,
            queued_bytes_max=self.queued_bytes_max,
            checkpoint_seconds=self.checkpoint_seconds,
            checkpoint_bytes=self.checkpoint_bytes,
            keep_versions=self.keep_versions,
            syncs=self.durability is Durability.FSYNC,
            snapshot_dir=self.snapshot_dir,
            snapshot_seconds=self.snapshot_seconds,
            snapshot_keep=self.snapshot_keep,
            backup_url=self._checked_backup_url(),
            backup_keep=self.backup_keep,
            file_tables=tuple(source.name for source in self.sources()),
        )

    def _checked_backup_url(self) -> str:
        """The backup URL, "" for none. ConfigError when nothing can ever be copied there."""
        if self.backup_url is None:
            return ""
        about = {"settings": "backup_url"}
        if self.snapshot_dir is None or self.data_dir is None:
            raise ConfigError("backup_url needs data_dir and snapshot_dir beside it", about)
        if self.backup_url.startswith("memory://"):
            raise ConfigError("backup_url: what is in memory:// is gone with its process", about)
        try:
            check_location(self.backup_url)
        except GatherdError as error:
            raise ConfigError(f"backup_url: {error.message}", about) from None
        return self.backup_url

    def sources(self) -> list[TableSource]:
        """The files to serve where they lie. ConfigError for a wrong spec or a name given twice."""
        defaults = dict(_split_spec(spec, "default_vector") for spec in self.default_vector)
        sources = []
        for spec in self.tables:
            name, location = _split_spec(spec, "table")
            path, _, tensor = location.partition("#")
            default = defaults.pop(name, None)
            sources.append(
                TableSource(name, Path(path), tensor or None, Path(default) if default else None)
            )
        names = [source.name for source in sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"table {min(twice)!r} is given twice", {"settings": "tables"})
        if defaults:
            raise ConfigError(
                f"default_vector names {min(defaults)!r}, which is no file table",
                {"settings": "default_vector"},
            )
        return sources


def merge_reloaded(
    settings: ServeSettings, fresh: ServeSettings
) -> tuple[ServeSettings, list[str]]:
    """The settings to go on with, and the names of changed settings that need a restart."""
    differ = [
        name
        for name in ServeSettings.model_fields
        if getattr(settings, name) != getattr(fresh, name)
    ]
    taken = {name: getattr(fresh, name) for name in differ if name in RELOADABLE}
    return settings.model_copy(update=taken), [name for name in differ if name not in taken]


def _split_spec(spec: str, what: str) -> tuple[str, str]:
    about = {"settings": "tables" if what == "table" else what}
    name, equals, location = spec.partition("=")
    if not equals or not location:
        raise ConfigError(f"{what} {spec!r} isn't NAME=FILE{_meant(spec)}", about)
    try:
        return check_table_name(name), location
    except GatherdError as error:
        raise ConfigError(error.message, about) from None


def _meant(spec: str) -> str:
    """What to type for a file without a name: the name before it, or its import."""
    path = Path(spec.partition("#")[0])
    if not path.is_file():
        return ""
    try:
        fd = open_readonly(path)
        try:
            read_layout(fd, str(path))
        finally:
            os.close(fd)
    except BadFile as error:
        return f"; {error.message}"
    except GatherdError:
        pass  # of its tensors one is to be picked, and the error says so once it has a name
    return f"; give it a name: gatherd serve {table_name_of(path)}={spec}"
