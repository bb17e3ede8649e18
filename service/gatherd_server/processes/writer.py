"""The writer as a process of its own, for a server of several workers.

It recovers the data dir, listens on the Unix socket that the supervisor made, and commits the
workers' updates. The supervisor holds the data dir's lock by a descriptor that this process
inherits too: nobody else gets the lock before both have ended.
"""

import asyncio
import gc
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gatherd.store.kernels import compiled
from gatherd_server.data_dir.changes import Changes
from gatherd_server.link.writer_end import LinkServer
from gatherd_server.observe.logs import LogFormat, configure_logging, set_level
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.observe.tracing import TraceExport
from gatherd_server.processes.channel import Channel, run_child
from gatherd_server.storage import mapped_rows
from gatherd_server.storage.files import Files
from gatherd_server.training import kernels as update_kernels
from gatherd_server.types import WriterLimits
from gatherd_server.writer.measures import Measures
from gatherd_server.writer.writer import Writer


@dataclass(frozen=True, slots=True)
class WriterBrief:
    """What the supervisor tells the writer process; descriptors, and what to write."""

    data_dir: Path
    limits: WriterLimits
    listener: int
    is_restart: bool
    log_level: str
    log_format: LogFormat
    metrics_fd: int
    workers: int
    traces: TraceExport
    stop_seconds: float
    metrics_per_table: bool

    def encode(self) -> bytes:
        """Encode it as one line."""
        enums = {"log_format": self.log_format.value, "traces": self.traces.value}
        document = {**asdict(self), **enums}
        return json.dumps(document, default=str).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "WriterBrief":
        """The brief that `encode` gave."""
        document: dict[str, Any] = json.loads(line)
        return cls(
            Path(document["data_dir"]),
            WriterLimits.from_json(document["limits"]),
            document["listener"],
            document["is_restart"],
            document["log_level"],
            LogFormat(document["log_format"]),
            document["metrics_fd"],
            document["workers"],
            TraceExport(document["traces"]),
            document["stop_seconds"],
            document["metrics_per_table"],
        )


def open_writer(
    data_dir: Path, limits: WriterLimits, telemetry: Telemetry, *, is_restart: bool
) -> tuple[Writer, Changes]:
    """Recover a data dir and start to commit, after all kernels that take part were compiled."""
    compiled.warm()
    mapped_rows.warm()
    update_kernels.warm()
    writer = Writer(
        data_dir,
        Files(),
        limits,
        is_restart=is_restart,
        measures=Measures(telemetry.writer, telemetry.spans, is_per_table=telemetry.is_per_table),
    )
    changes = Changes(writer, limits)
    changes.begin()
    telemetry.pulse.before(writer.measure)
    return writer, changes


async def _run(channel: Channel, line: bytes) -> None:
    brief = WriterBrief.decode(line)
    configure_logging(brief.log_level, brief.log_format)
    telemetry = Telemetry.inherited(
        brief.metrics_fd,
        brief.workers,
        has_writer=True,
        is_per_table=brief.metrics_per_table,
        traces=brief.traces,
    )
    writer, changes = open_writer(
        brief.data_dir, brief.limits, telemetry, is_restart=brief.is_restart
    )
    telemetry.pulse.start()
    server = LinkServer(writer, changes)
    changes.prepare = server.prepare
    changes.check_unused = server.check_unused
    loop = asyncio.get_running_loop()
    listener = socket.socket(fileno=brief.listener)
    stop = channel.closed(lambda changed: set_level(changed["log_level"]), brief.stop_seconds)
    listening = await loop.create_unix_server(server.connection, sock=listener)
    # As in a worker.
    gc.freeze()
    gc.enable()
    channel.tell_ready()
    await stop.wait()
    listening.close()
    await asyncio.to_thread(changes.close)
    await asyncio.to_thread(telemetry.pulse.close)
    await asyncio.to_thread(writer.close)
    await asyncio.to_thread(telemetry.close)


if __name__ == "__main__":
    run_child(_run)
