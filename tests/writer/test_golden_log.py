"""A script of commands and the log that they make, compared with the text in golden/log.txt.

A line that begins with > is a command; what follows up to the next one is what it says:

    > create NAME ROWS DIM DTYPE OPTIMIZER     a table of zeros, frozen if OPTIMIZER is -
    > push OP TABLE IDS=VALUE [TABLE IDS=VALUE …] [id=KEY | sequence=N] [owner=NAME] [& OP …]
                                               one push, or several, with &, in one batch
    > publish | rollback | delete TABLE, > optimizer TABLE NAME, > checkpoint, > snapshot NAME
    > restart                                  the writer stops in good order and starts again
    > log                                      the log on the disk, but for frames shown before
"""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from durability.trainer import Quick, reproducible
from gatherd.errors import GatherdError
from gatherd.store.catalog import read_catalog
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.snapshots.snapshot import take_snapshot
from gatherd_server.types import (
    CreateTable,
    DeleteTable,
    OptimizerSpec,
    OwnedKey,
    Publish,
    Push,
    PushResult,
    RequestId,
    Rollback,
    SessionSequence,
    SetOptimizer,
    TableChange,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer
from support.golden import check_golden
from support.log_dump import LogDump

SCRIPT = Path(__file__).parent / "golden/log.txt"
LIMITS = WriterLimits(segment_bytes=2_000, checkpoint_seconds=3600.0, keep_versions=2)
SESSION = b"a golden session"
WAIT_SECONDS = 30


class Runner:
    """Does what a script says to a data dir of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._data = root / "data"
        self._files = Quick()
        self._dims: dict[str, int] = {}
        self._dtypes: dict[str, DType] = {}
        self._dump = LogDump(self._data, self._dtypes)
        with own_data_dir(self._data, create=True, files=self._files):
            pass
        self._start()

    def _start(self) -> None:
        self._writer = Writer(self._data, self._files, LIMITS)
        self._changes = Changes(self._writer, LIMITS)

    def close(self) -> None:
        self._changes.close()
        self._writer.close()

    def run(self, command: str) -> Iterator[str]:
        """What `command` says, a line at a time."""
        verb, _, rest = command.partition(" ")
        try:
            yield from self._run(verb, rest)
        except GatherdError as error:
            yield f"{type(error).__name__}: {error.message.replace(str(self._root), 'ROOT')}"

    def _run(self, verb: str, rest: str) -> Iterator[str]:
        match verb, rest.split():
            case "create", [name, rows, dim, dtype, optimizer]:
                self._dims[name], self._dtypes[name] = int(dim), DType(dtype)
                spec = None if optimizer == "-" else OptimizerSpec(optimizer, {"lr": 0.5})
                zeros = Initializer.parse("zeros")
                shape = (int(rows), int(dim), DType(dtype))
                made = CreateTable(name, *shape, zeros, 1, spec, frozen=spec is None)
                yield self._change(made)
            case "publish", [name]:
                yield self._change(Publish(name))
            case "rollback", [name]:
                yield self._change(Rollback(name))
            case "delete", [name]:
                yield self._change(DeleteTable(name))
            case "optimizer", [name, optimizer]:
                yield self._change(SetOptimizer(name, OptimizerSpec(optimizer, {"lr": 0.5})))
            case "push", _:
                yield from self._push([self._read(text) for text in rest.split("&")])
            case "checkpoint", []:
                yield f"LSN {self._writer.checkpoint()}"
            case "snapshot", [name]:
                taken = take_snapshot(self._writer, self._root / "snapshots", name)
                yield f"{Path(taken.path).relative_to(self._root)}, LSN {taken.lsn}"
            case "restart", []:
                self.close()
                self._start()
                yield f"LSN {self._writer.applied_lsn}"
            case "log", []:
                yield from self._dump.lines()
            case _:
                raise AssertionError(f"no command: {verb} {rest}")

    def _change(self, change: TableChange) -> str:
        done = self._changes.change(change).result(WAIT_SECONDS)
        tables = read_catalog(self._data).tables
        self._dump.know({entry.uid: name for name, entry in tables.items()})
        return f"version {done.version}, LSN {done.lsn}"

    def _read(self, text: str) -> Push:
        op, *words = text.split()
        options = dict(word.split("=") for word in words if word.startswith(("id=", "seq", "own")))
        parts = [word for word in words if word.partition("=")[0] not in options]
        updates = []
        for table, given in zip(parts[::2], parts[1::2], strict=True):
            listed, _, value = given.partition("=")
            ids = np.array(listed.split(","), np.int64)
            values = np.full((ids.size, self._dims[table]), float(value), np.float32)
            updates.append(TableUpdate(table, ids, values))
        return Push(UpdateOp(op), tuple(updates), _request_id(options))

    def _push(self, pushes: list[Push]) -> Iterator[str]:
        def submit() -> "list[Future[PushResult] | GatherdError]":
            return [self._submitted(push) for push in pushes]

        # While the committer does this it takes nothing, so they are one batch.
        for future in self._writer.between(submit):
            try:
                if isinstance(future, GatherdError):
                    raise future
                done = future.result(WAIT_SECONDS)
            except GatherdError as error:
                yield f"{type(error).__name__}: {error.message}"
            else:
                yield f"LSN {done.lsn}, versions {list(done.versions)}"

    def _submitted(self, push: Push) -> "Future[PushResult] | GatherdError":
        try:
            return self._writer.submit(push, push_digest(push) if push.request_id else b"")
        except GatherdError as error:
            return error


def _request_id(options: dict[str, Any]) -> RequestId:
    owner = options.get("owner", "")
    if "sequence" in options:
        return SessionSequence(SESSION, int(options["sequence"]), owner)
    if "id" in options:
        return OwnedKey(options["id"], owner) if owner else str(options["id"])
    return None


def test_the_log_of_the_script_is_as_committed(tmp_path: Path) -> None:
    lines: list[str] = []
    with reproducible(7):
        runner = Runner(tmp_path)
        try:
            for line in SCRIPT.read_text().splitlines():
                if line.startswith("#"):
                    lines.append(line)
                elif line.startswith("> "):
                    said = runner.run(line.removeprefix("> "))
                    lines += [line, *said, ""]
        finally:
            runner.close()
    check_golden(SCRIPT, "\n".join(lines), "what the writer logs has changed")
