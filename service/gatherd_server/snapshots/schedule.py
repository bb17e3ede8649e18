"""Snapshots by schedule: one whenever the newest is old enough.

The newest snapshot's name says when it was taken. So a server that is restarted more often than a
snapshot is due still takes them.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path

from gatherd.errors import GatherdError
from gatherd_server.snapshots.snapshot import snapshot_age_seconds
from gatherd_server.types import SnapshotResult

logger = logging.getLogger("gatherd.writer")

# After a failure the next try comes after this pause, unless the next snapshot is due sooner.
RETRY_SECONDS = 300.0


class Schedule:
    """Has a snapshot taken to `folder` every `interval_seconds`."""

    def __init__(
        self,
        folder: Path,
        interval_seconds: float,
        take: Callable[[], "Future[SnapshotResult]"],
    ) -> None:
        """`take` begins a snapshot that is named by the time. Nothing happens before `begin`."""
        self._folder = folder
        self._interval_seconds = interval_seconds
        self._take = take
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def begin(self) -> None:
        """Take the first one at once if there is none, or the newest is old enough."""
        self._thread.start()

    def close(self) -> None:
        """Wait for the snapshot that is under way; no more are taken."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        wait_seconds = 0.0
        while not self._closing.wait(wait_seconds):
            try:
                wait_seconds = self._due_in_seconds()
                if wait_seconds == 0:
                    self._take().result()
                    wait_seconds = self._interval_seconds
            except (GatherdError, OSError, CancelledError) as error:
                logger.error("the snapshot by schedule failed: %s", error)  # noqa: TRY400 - says it all
                wait_seconds = min(self._interval_seconds, RETRY_SECONDS)

    def _due_in_seconds(self) -> float:
        """At most the interval, so that a clock that was set back does no harm."""
        age = snapshot_age_seconds(self._folder)
        if age is None:
            return 0.0
        return min(self._interval_seconds, max(0.0, self._interval_seconds - age))
