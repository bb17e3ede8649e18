"""The process that copies snapshots for a server: `python -P -m …backups.child`.

It is a process, and not a thread of the writer, for two reasons. A scheme's package may hang or
take memory: then the process is killed, and the writer is not affected. And checksums would take
the interpreter from commits. It reads its task from standard input, in one line, and ends when that
closes. On standard output it reports its events, each as a line of JSON:

    {"event": "progress", "bytes": n}          at most one each half second
    {"event": "copied", "name", "lsn", "bytes", "error"}
    {"event": "removed", "name"}
    {"event": "done", "newest": Unix time or null}
    {"event": "failed", "error"}
"""

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gatherd.errors import GatherdError
from gatherd_server.snapshots.backups.copying import copy_snapshots
from gatherd_server.snapshots.backups.store import open_store

PROGRESS_SECONDS = 0.5
# Pushes and lookups have priority.
NICENESS = 10


def main() -> int:
    """Copy once; return 0 when the round went through, even if a single snapshot failed."""
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return 1  # the writer has gone
    brief: dict[str, Any] = json.loads(line)
    # A scheme's package may print to standard output, which belongs to the keeper.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.nice(NICENESS)
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=_end_with_the_writer, daemon=True).start()
    told_at = time.monotonic()
    byte_count = 0

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=told, flush=True)

    def progress(piece_bytes: int) -> None:
        nonlocal told_at, byte_count
        byte_count += piece_bytes
        if time.monotonic() - told_at >= PROGRESS_SECONDS:
            told_at = time.monotonic()
            tell({"event": "progress", "bytes": byte_count})

    try:
        outcome = copy_snapshots(
            Path(brief["folder"]), open_store(brief["url"]), brief["keep"], progress
        )
    except GatherdError as error:
        tell({"event": "failed", "error": error.message})
        return 1
    for copied in outcome.copied:
        fields = asdict(copied)
        tell({"event": "copied", "bytes": fields.pop("byte_count"), **fields})
    for name in outcome.removed:
        tell({"event": "removed", "name": name})
    newest = outcome.newest
    tell({"event": "done", "newest": newest and newest.snapshot.created.timestamp()})
    return 0


def _end_with_the_writer() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
