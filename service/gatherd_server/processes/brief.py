"""What the supervisor tells a worker.

A module of its own, which imports nothing of the wires: that would take the supervisor, and every
command, a second.
"""

import json
from dataclasses import dataclass
from typing import Any

from gatherd_server.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class WorkerBrief:
    """What the supervisor tells a worker.

    `listeners` are descriptors of listening sockets. `sources` are descriptors of the files in
    `settings.tables`, in their order: a restarted worker maps the very file that the others have
    mapped, even if its name is gone or means another file by now. `versions` are theirs.
    `is_restart` says that another worker had this place, `number`, before. `metrics_fd` is the page
    in which all count. Without `has_writer` this server doesn't change the data dir: there is none,
    or it is read-only.
    """

    settings: ServeSettings
    grpc_address: str
    listeners: tuple[int, ...]
    sources: tuple[int, ...]
    versions: tuple[int, ...]
    is_restart: bool
    number: int
    metrics_fd: int
    has_writer: bool

    def encode(self) -> bytes:
        """Encode it as one line."""
        settings = self.settings.model_dump(mode="json")
        document = {
            "settings": settings,
            "grpc_address": self.grpc_address,
            "listeners": self.listeners,
            "sources": self.sources,
            "versions": self.versions,
            "is_restart": self.is_restart,
            "number": self.number,
            "metrics_fd": self.metrics_fd,
            "has_writer": self.has_writer,
        }
        return json.dumps(document).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "WorkerBrief":
        """The brief that `encode` gave."""
        document: dict[str, Any] = json.loads(line)
        return cls(
            ServeSettings(**document["settings"]),
            document["grpc_address"],
            tuple(document["listeners"]),
            tuple(document["sources"]),
            tuple(document["versions"]),
            document["is_restart"],
            document["number"],
            document["metrics_fd"],
            document["has_writer"],
        )
