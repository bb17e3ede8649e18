"""Keeps a store up to date with a server's snapshots, in the background.

Only a thread of its own waits here for the store. The copying process is killed when it makes no
progress, and tried again later, with growing pauses, for as long as the server runs.
"""

import json
import logging
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from gatherd_server.snapshots.backups.store import shown_url
from gatherd_server.writer.measures import Measures

logger = logging.getLogger("gatherd.writer")

# Longer than the slowest of a store's own retries; after that the copying is stalled.
STALL_SECONDS: Final = 300.0
# After a failure: the first pause, and the limit up to which it doubles.
RETRY_SECONDS_MIN: Final = 15.0
RETRY_SECONDS_MAX: Final = 900.0
_END_SECONDS: Final = 5.0
_LINE_BYTES_MAX: Final = 1 << 20


class Keeper:
    """Copies new snapshots of `folder` to `url`. Safe to use from many threads."""

    def __init__(
        self,
        folder: Path,
        url: str,
        keep: int,
        measures: Measures,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """Nothing happens before `begin`. A copy without progress for `stall_seconds` failed."""
        self._stall_seconds = stall_seconds
        self._shown = shown_url(url)
        self._brief = json.dumps({"folder": str(folder), "url": url, "keep": keep}).encode() + b"\n"
        self._measures = measures
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backups", daemon=True)

    def begin(self) -> None:
        """Copy what was left before this start, and then every new snapshot."""
        self._measures.newest_backup(None)
        self._thread.start()

    def wake(self) -> None:
        """Say that there is a new snapshot."""
        self._wake.set()

    def close(self) -> None:
        """Stop at once, also in the middle of a copy: the next start continues it."""
        with self._lock:
            self._closing.set()
            if self._child is not None:
                self._child.kill()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pause: float | None = None
        while True:
            self._wake.clear()
            error = self._round()
            if self._closing.is_set():
                return
            if error:
                pause = min(RETRY_SECONDS_MAX, 2 * pause if pause else RETRY_SECONDS_MIN)
                self._measures.backup_failed()
                logger.error(
                    "the backup to %s failed: %s; next try in %g s", self._shown, error, pause
                )
            else:
                pause = None
            self._wake.wait(pause)
            if self._closing.is_set():
                return

    def _round(self) -> str:
        """Copy once; return why that failed, or ""."""
        begun = time.monotonic()
        command = [sys.executable, "-P", "-m", "gatherd_server.snapshots.backups.child"]
        with self._lock:
            if self._closing.is_set():
                return ""
            try:
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError as error:
                return f"the copying process can't be started: {error.strerror}"
            self._child = child
        try:
            return self._follow(child, begun)
        finally:
            child.kill()
            child.wait(_END_SECONDS)
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
            with self._lock:
                self._child = None

    def _follow(self, child: "subprocess.Popen[bytes]", begun: float) -> str:
        """Read the child's events until its end; return why it failed, or ""."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(self._brief)
            child.stdin.flush()
        except OSError:
            return "the copying process ended at once"
        errors: list[str] = []
        is_done = False
        received = b""
        # Not select.select, which takes no descriptor above 1,023.
        told = select.poll()
        told.register(child.stdout, select.POLLIN)
        while True:
            if not told.poll(self._stall_seconds * 1000):
                return f"no byte more went in {self._stall_seconds:g} s"
            data = child.stdout.read1(_LINE_BYTES_MAX)  # type: ignore[attr-defined]  # a BufferedReader
            if not data:
                break
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                event: dict[str, Any] = json.loads(line)
                is_done = is_done or event["event"] == "done"
                if error := self._hear(event, begun):
                    errors.append(error)
        if not is_done and not errors:
            return f"the copying process ended with status {child.wait(_END_SECONDS)}"
        return "; ".join(errors)

    def _hear(self, event: dict[str, Any], begun: float) -> str:
        """Count and log one event; return its error, or ""."""
        match event:
            case {"event": "copied", "error": str(error), "name": name} if error:
                return f"{name}: {error}"
            case {"event": "copied", "name": name, "lsn": lsn, "bytes": byte_count}:
                self._measures.backed_up()
                logger.info(
                    "snapshot %s of LSN %d is in %s: %d bytes in %.1f s",
                    name, lsn, self._shown, byte_count, time.monotonic() - begun,
                )  # fmt: skip
            case {"event": "removed", "name": name}:
                logger.info("backup %s in %s is deleted: there are newer ones", name, self._shown)
            case {"event": "done", "newest": newest}:
                self._measures.newest_backup(newest)
            case {"event": "failed", "error": error}:
                return str(error)
        return ""
