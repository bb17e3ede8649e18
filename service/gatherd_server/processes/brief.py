"""What the supervisor tells a worker, in a module of its own: it imports nothing of the wires.

Importing those takes a second, which neither the supervisor nor a command has to spend.
"""

import json
from dataclasses import dataclass
from typing import Any

from gatherd_server.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class WorkerBrief:
    """What the supervisor tells a worker.

    `listeners` are descriptors of listening sockets, `sources` descriptors of the files in
    `settings.tables`, in their order: a worker that comes back maps the very file that the others
    have mapped, also when its name has gone or means another file by now. `is_restart` says that
    another worker was in this place, `number`, before. `metrics_fd` is the page that all count in.
    Without `has_writer` nobody of this server changes the data dir: there is none, or it is
    read-only.
    """

    settings: ServeSettings
    grpc_address: str
    listeners: tuple[int, ...]
    sources: tuple[int, ...]
    is_restart: bool
    number: int
    metrics_fd: int
    has_writer: bool

    def encode(self) -> bytes:
        """As one line."""
        settings = self.settings.model_dump(mode="json")
        document = {
            "settings": settings,
            "grpc_address": self.grpc_address,
            "listeners": self.listeners,
            "sources": self.sources,
            "is_restart": self.is_restart,
            "number": self.number,
            "metrics_fd": self.metrics_fd,
            "has_writer": self.has_writer,
        }
        return json.dumps(document).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "WorkerBrief":
        """From what `encode` gave."""
        document: dict[str, Any] = json.loads(line)
        return cls(
            ServeSettings(**document["settings"]),
            document["grpc_address"],
            tuple(document["listeners"]),
            tuple(document["sources"]),
            document["is_restart"],
            document["number"],
            document["metrics_fd"],
            document["has_writer"],
        )
