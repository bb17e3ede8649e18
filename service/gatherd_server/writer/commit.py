"""From a batch of pushes to one frame of the log, and from a frame to the mapped rows.

A batch is computed in the order of its LSNs, on images of the rows that it changes: a later push of
the batch builds on an earlier one. Nothing is written before the whole batch is computed. If a push
turns out to be impossible, it is left out and the rest is computed anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import (
    BadFile,
    GatherdError,
    InvalidArgument,
    NoKeys,
    NonfiniteValues,
    VersionMismatch,
)
from gatherd.store.ids import all_in_range, out_of_range_error
from gatherd.store.keys import key_not_found_error
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import Asked, ByKey
from gatherd_server.storage.records import Record, pack
from gatherd_server.storage.wal_reader import Frame
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.types import Push, PushResult, RequestId, TableUpdate, UpdateOp
from gatherd_server.writer.versions import LiveVersion, Versions, no_optimizer
from gatherd_server.writer.window import (
    Window,
    push_digest,
    request_id_from_json,
    request_id_to_json,
)


@dataclass(frozen=True, slots=True, eq=False)
class Submitted:
    """A push that waits to be committed, and the digest of its contents."""

    push: Push
    digest: bytes

    @classmethod
    def of(cls, push: Push) -> Self:
        """A push that was just received; without an id nobody asks for its digest."""
        return cls(push, push_digest(push) if push.request_id is not None else b"")


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One table's part of a push, its keys and ids resolved to rows."""

    live: LiveVersion
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    lr: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """A computed batch: the answer to each push, the frame's record, and the images."""

    outcomes: list[PushResult | GatherdError]
    first_lsn: int
    last_lsn: int
    images: list[tuple[LiveVersion, RowImages]]
    record: list[bytes | memoryview]

    @property
    def is_empty(self) -> bool:
        """Whether every push was refused."""
        return self.last_lsn < self.first_lsn


def compute(batch: Sequence[Submitted], versions: Versions, first_lsn: int) -> Commit:
    """The commit of `batch`, whose first push gets `first_lsn`."""
    refused: dict[int, GatherdError] = {}
    steps: list[list[_Step]] = []
    for number, submitted in enumerate(batch):
        try:
            push = submitted.push
            steps.append([_step(push.op, update, versions) for update in push.updates])
        except GatherdError as error:
            refused[number] = error
            steps.append([])
    while True:
        images = _images(batch, steps, refused)
        failed = _run(batch, steps, refused, images)
        if failed is None:
            break
        refused[failed[0]] = failed[1]
    outcomes: list[PushResult | GatherdError] = []
    lsn = first_lsn
    for number, some in enumerate(steps):
        if number in refused:
            outcomes.append(refused[number])
        else:
            outcomes.append(PushResult(lsn, tuple(step.live.version for step in some)))
            lsn += 1
    listed = list(images.values())
    record = _record(batch, outcomes, listed)
    return Commit(outcomes, first_lsn, lsn - 1, listed, record)


def _step(op: UpdateOp, update: TableUpdate, versions: Versions) -> _Step:
    """Check an update against the version that is live now."""
    live = versions.live(update.table)
    if op is UpdateOp.APPLY_GRADIENTS and not live.mapped.optimizer.name.takes_gradients:
        raise no_optimizer(live.name)
    if update.if_version not in (LIVE_VERSION, live.version):
        raise VersionMismatch(
            f"table {update.table!r} has version {live.version} live; the update insists on "
            f"version {update.if_version}",
            {"table": update.table, "live": str(live.version)},
        )
    if update.creates or op is UpdateOp.DELETE_ROWS:
        raise _is_closed(update, live)
    dim = live.mapped.dim
    if update.values.shape != (*update.asked.shape, dim):
        raise InvalidArgument(
            f"table {update.table!r} has dim {dim}: values for ids of shape {update.asked.shape} "
            f"have shape {(*update.asked.shape, dim)}, not {update.values.shape}"
        )
    ids = _ids(update.table, update.asked, live)
    values = np.ascontiguousarray(update.values.reshape(ids.size, dim), np.float32)
    return _Step(live, ids, values, update.lr)


def _is_closed(update: TableUpdate, live: LiveVersion) -> GatherdError:
    """The error for an update that would create or delete rows of a closed table."""
    if live.keys is None:
        return _no_keys(update.table)
    verb = "create" if update.creates else "delete"
    return InvalidArgument(
        f"table {update.table!r} is closed: its rows are those that it was made with, so an update "
        f"can't {verb} any; `gatherd create NAME --keys …` makes an open table",
        {"table": update.table},
    )


def _no_keys(table: str) -> NoKeys:
    return NoKeys(f"table {table!r} has no keys; its rows have ids", {"table": table})


def _ids(table: str, asked: Asked, live: LiveVersion) -> NDArray[np.int64]:
    if isinstance(asked, ByKey):
        if live.keys is None:
            raise _no_keys(table)
        rows = live.keys.rows_of(asked.keys)
        if (rows < 0).any():
            raise key_not_found_error(table, asked.keys, rows)
        return rows.reshape(-1)
    if not all_in_range(asked, live.mapped.row_count):
        raise out_of_range_error(table, asked, live.mapped.row_count)
    return np.ascontiguousarray(asked.reshape(-1), np.int64)


def _images(
    batch: Sequence[Submitted], steps: Sequence[Sequence[_Step]], refused: dict[int, GatherdError]
) -> dict[str, tuple[LiveVersion, RowImages]]:
    """Empty images for every table of the batch, with room for all its rows."""
    rooms: dict[str, int] = {}
    lives: dict[str, LiveVersion] = {}
    with_slots: set[str] = set()
    for number, (submitted, some) in enumerate(zip(batch, steps, strict=True)):
        if number in refused:
            continue
        for step in some:
            uid = step.live.uid
            lives[uid] = step.live
            rooms[uid] = rooms.get(uid, 0) + step.ids.size
            if submitted.push.op is UpdateOp.APPLY_GRADIENTS:
                with_slots.add(uid)
    images = {}
    for uid, live in lives.items():
        mapped = live.mapped
        base = TrainedRows(mapped.weights, mapped.dtype, mapped.dim, mapped.slots)
        made = RowImages(base, mapped.optimizer, rooms[uid], with_slots=uid in with_slots)
        images[uid] = (live, made)
    return images


def _run(
    batch: Sequence[Submitted],
    steps: Sequence[Sequence[_Step]],
    refused: dict[int, GatherdError],
    images: dict[str, tuple[LiveVersion, RowImages]],
) -> tuple[int, GatherdError] | None:
    """Compute the pushes that aren't refused; return the first that fails, and its error."""
    for number, (submitted, some) in enumerate(zip(batch, steps, strict=True)):
        if number in refused:
            continue
        for step in some:
            image = images[step.live.uid][1]
            try:
                match submitted.push.op:
                    case UpdateOp.SCATTER_ADD:
                        image.scatter_add(step.ids, step.values)
                    case UpdateOp.APPLY_GRADIENTS:
                        image.apply_gradients(step.ids, step.values, step.lr)
                    case UpdateOp.ASSIGN:
                        image.assign(step.ids, step.values)
                    case UpdateOp.DELETE_ROWS:
                        raise AssertionError("no table can delete rows yet")
            except NonfiniteValues as error:
                message = f"table {step.live.name!r}: {error.message}"
                return number, NonfiniteValues(message, {**error.metadata, "table": step.live.name})
    return None


def _record(
    batch: Sequence[Submitted],
    outcomes: Sequence[PushResult | GatherdError],
    images: Sequence[tuple[LiveVersion, RowImages]],
) -> list[bytes | memoryview]:
    """The frame's payload; storage/wal_format.py has the layout."""
    pushes = [
        [
            request_id_to_json(submitted.push.request_id),
            submitted.digest.hex(),
            outcome.versions,
            *([outcome.counts] if outcome.counts else []),
        ]
        for submitted, outcome in zip(batch, outcomes, strict=True)
        if isinstance(outcome, PushResult)
    ]
    listed = []
    arrays: list[NDArray[Any]] = []
    for live, image in images:
        slots, scalars = image.slots, image.scalars
        listed.append([live.uid, live.version, list(slots), list(scalars)])
        arrays += [image.rows, image.weights, *slots.values(), *scalars.values()]
    return pack({"pushes": pushes, "images": listed}, arrays)


def store(commit: Commit, versions: Versions) -> None:
    """Make a logged commit visible."""
    for live, image in commit.images:
        live.mapped.store(image.rows, image.weights, image.slots, image.scalars)
        versions.changed(live.uid, live.version)


@dataclass(frozen=True, slots=True, eq=False)
class LoggedImages:
    """One version's images, as read from a frame."""

    uid: str
    version: int
    rows: NDArray[np.int64]
    weights: NDArray[np.uint8]
    slots: dict[str, NDArray[np.float32]]
    scalars: dict[str, NDArray[np.int64]]


def logged_images(record: Record) -> list[LoggedImages]:
    """The images of a frame of pushes. BadFile when its directory and its arrays disagree."""
    arrays = iter(record.arrays)
    found = []
    try:
        for uid, version, slots, scalars in record.directory["images"]:
            rows, weights = next(arrays), next(arrays)
            by_slot = {name: next(arrays) for name in slots}
            by_scalar = {name: next(arrays) for name in scalars}
            found.append(LoggedImages(uid, version, rows, weights, by_slot, by_scalar))
    except (KeyError, ValueError, TypeError, StopIteration) as error:
        raise BadFile(f"a frame of the log contradicts itself: {error!r}") from None
    return found


def remember(frame: Frame, window: Window) -> None:
    """Enter the pushes of a logged frame into the window."""
    lsn = frame.first_lsn
    for listed_id, digest, pushed_versions, *counts in frame.record.directory["pushes"]:
        request_id: RequestId = request_id_from_json(listed_id)
        result = PushResult.of(lsn, tuple(pushed_versions), *counts)
        window.add(request_id, bytes.fromhex(digest), result)
        lsn += 1
