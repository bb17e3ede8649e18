"""Served files that were replaced, as by mv: found at SIGHUP, and served instead of the old ones.

The supervisor opens and checks the new files, and hands their descriptors to the workers. Each maps
them and brings them into memory, while it serves the old ones, and says so. Only when all are ready
do all of them switch, each by one reference: a request is answered from one set of files. If one
file is bad, or one worker can't map it, none is switched: files that belong together stay together.
A restarted worker gets the files that are served then.

Left out on purpose: a watch of the files. Only who replaces a file knows when it is complete.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gatherd.errors import FailedPrecondition, GatherdError
from gatherd.store.shards import open_rows
from gatherd_server.engine.tables import open_source
from gatherd_server.processes.child import FDS_MAX, Child
from gatherd_server.types import TableSource

logger = logging.getLogger("gatherd.supervisor")


@dataclass(slots=True)
class ServedFile:
    """A file that is served where it lies, by its descriptor."""

    source: TableSource
    fd: int
    dim: int
    version: int = 1


@dataclass(slots=True)
class _Pending:
    """New files that workers are mapping: place in the list of files → descriptor."""

    number: int
    """Workers answer with it: an answer may come after its reload was refused."""
    fds: dict[int, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """What the log says of each when it is served."""
    waited_for: set[str] = field(default_factory=set)


class Replacements:
    """Replaces the files of a running server. For the supervisor's one thread."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """`count` is called with the outcome of each reload that found new files."""
        self.files: list[ServedFile] = []
        self.is_due = False
        self._count = count
        self._pending: _Pending | None = None
        self._begun_count = 0

    def open(self, source: TableSource) -> None:
        """Open and check a file at the start. BadFile or InvalidArgument when it is none."""
        fd = open_rows(source.path, source.tensor)
        try:
            table = open_source(source, fd)
        except BaseException:
            os.close(fd)
            raise
        self.files.append(ServedFile(source, fd, table.dim))

    def close(self) -> None:
        """Close every descriptor."""
        self._forget_pending()
        while self.files:
            os.close(self.files.pop().fd)

    def begin(self, workers: Sequence[Child]) -> None:
        """Look for new files if that is due and all workers can be asked; hand them over."""
        if not self.is_due or self._pending is not None:
            return
        if not all(worker.is_ready for worker in workers):
            return  # again when the one that is starting is ready
        self.is_due = False
        self._begun_count += 1
        pending = _Pending(self._begun_count)
        try:
            for place, file in enumerate(self.files):
                self._look_at(place, file, pending)
        except GatherdError as error:
            self._pending = pending
            self._refuse(error.message, workers)
            return
        if not pending.fds:
            return
        self._pending = pending
        if len(pending.fds) > FDS_MAX:
            why = f"{len(pending.fds)} files are new, and {FDS_MAX} can be replaced at a time"
            self._refuse(f"{why}; restart the server", workers)
            return
        pending.waited_for = {worker.name for worker in workers}
        places = [[place, self.files[place].version + 1] for place in pending.fds]
        line = _line("map", number=pending.number, places=places)
        for worker in workers:
            worker.tell(line, tuple(pending.fds.values()))

    def _look_at(self, place: int, file: ServedFile, pending: _Pending) -> None:
        """Note a new file at the path of `file`. GatherdError when it can't be served."""
        source = file.source
        try:
            source.path.stat()
        except FileNotFoundError:
            return  # deleted files are served on
        except OSError:
            pass  # opening it says what is wrong
        fd = open_rows(source.path, source.tensor)
        if os.path.sameopenfile(fd, file.fd):
            os.close(fd)
            return
        pending.fds[place] = fd
        table = open_source(source, fd)
        if table.dim != file.dim:
            raise FailedPrecondition(
                f"table {source.name!r} has dim {file.dim}; {source.path} has dim {table.dim}; "
                "a restart would serve it"
            )
        rows = f"{table.row_count} x {table.dim} {table.dtype.value}"
        pending.told.append(
            f"table {source.name!r}: {source.path} was replaced; "
            f"version {file.version + 1}, {rows}, is live"
        )

    def on_answer(self, number: int, failure: str, worker: Child, workers: Sequence[Child]) -> None:
        """A worker has mapped the new files, or failed to. The last one makes all switch."""
        pending = self._pending
        if pending is None or pending.number != number:
            return
        if failure:
            self._refuse(failure, workers)
            return
        pending.waited_for.discard(worker.name)
        if pending.waited_for:
            return
        for child in workers:
            child.tell(_line("switch"))
        for place, fd in pending.fds.items():
            file = self.files[place]
            os.close(file.fd)
            file.fd = fd
            file.version += 1
        for told in pending.told:
            logger.info("%s", told)
        self._pending = None
        self._count("done")

    def on_exit(self, worker: Child, workers: Sequence[Child]) -> None:
        """A worker has ended; a new file may be why, and its successor hasn't mapped it."""
        if self._pending is not None:
            self._refuse(f"{worker.name} ended while the new files were mapped", workers)

    def _refuse(self, why: str, workers: Sequence[Child]) -> None:
        self._forget_pending()
        for child in workers:
            child.tell(_line("forget"))
        self._count("refused")
        logger.error("no file is replaced, and those served before are served on: %s", why)

    def _forget_pending(self) -> None:
        if self._pending is not None:
            for fd in self._pending.fds.values():
                os.close(fd)
        self._pending = None


def _line(step: str, **told: object) -> bytes:
    return json.dumps({"files": step, **told}).encode() + b"\n"
