"""From a batch of pushes to one frame of the log, and from a frame to the mapped rows.

A batch is computed in the order of its LSNs, on images of the rows that it changes: a later push of
the batch builds on an earlier one. Nothing is written before the whole batch is computed. If a push
turns out to be impossible, it is left out and the rest is computed anew.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np

from gatherd.errors import GatherdError, NonfiniteValues
from gatherd.store.keys import shown_keys
from gatherd_server.storage.images_record import VersionImages, list_images
from gatherd_server.storage.records import pack
from gatherd_server.storage.wal_reader import Frame
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.types import Push, PushResult, RequestId, UpdateOp
from gatherd_server.writer.open_batch import HalfDone, OpenBatch
from gatherd_server.writer.steps import EndOfBatch, Step, Steps
from gatherd_server.writer.versions import LiveVersion, Versions
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
class Commit:
    """A computed batch: the answer to each push, the frame's record, and the images."""

    outcomes: list[PushResult | GatherdError]
    first_lsn: int
    last_lsn: int
    images: list[tuple[LiveVersion, VersionImages]]
    record: list[bytes | memoryview]
    opened: list[OpenBatch]
    pushed: dict[str, int]
    """The LSN of the last push to each table, by uid."""

    @property
    def is_empty(self) -> bool:
        """Whether every push was refused."""
        return self.last_lsn < self.first_lsn


_Images: TypeAlias = dict[str, tuple[LiveVersion, RowImages]]


def compute(batch: Sequence[Submitted], versions: Versions, first_lsn: int) -> Commit:
    """The commit of `batch`, whose first push gets `first_lsn`. Changes nothing.

    It may be of the first pushes only: `outcomes` has theirs, and the others need another commit.
    """
    refused: dict[int, GatherdError] = {}
    now_us = time.time_ns() // 1000
    while True:
        resolved = Steps(versions, now_us)
        try:
            steps = _resolved(batch, resolved, refused)
        except HalfDone:
            continue
        except EndOfBatch as end:
            batch = batch[: end.number]
            continue
        images = _images(batch, steps)
        failed = _run(batch, steps, images, resolved)
        if failed is None:
            break
        refused[failed[0]] = failed[1]
    outcomes: list[PushResult | GatherdError] = []
    lsn = first_lsn
    pushed: dict[str, int] = {}
    for number, some in enumerate(steps):
        if number in refused:
            outcomes.append(refused[number])
        else:
            live = tuple(step.live.version for step in some)
            outcomes.append(PushResult.of(lsn, live, (step.counts for step in some)))
            pushed |= {step.live.uid: lsn for step in some}
            lsn += 1
    listed = _finished(images, resolved)
    record = _record(batch, outcomes, listed)
    opened = [one for _, one in resolved.opened.values()]
    return Commit(outcomes, first_lsn, lsn - 1, listed, record, opened, pushed)


def _resolved(
    batch: Sequence[Submitted], resolved: Steps, refused: dict[int, GatherdError]
) -> list[list[Step]]:
    """The steps of each push, none for those that are refused, now or before.

    HalfDone when one more is, and all of them have to be resolved anew.
    """
    steps: list[list[Step]] = []
    for number, submitted in enumerate(batch):
        try:
            steps.append([] if number in refused else resolved.of(submitted.push))
        except EndOfBatch as end:
            end.number = number
            raise
        except HalfDone as half:
            refused[number] = half.error
            raise
        except GatherdError as error:
            refused[number] = error
            steps.append([])
    return steps


def _images(batch: Sequence[Submitted], steps: Sequence[Sequence[Step]]) -> _Images:
    """Empty images for every table of the batch, with room for all its rows."""
    rooms: dict[str, int] = {}
    lives: dict[str, LiveVersion] = {}
    with_slots: set[str] = set()
    for submitted, some in zip(batch, steps, strict=True):
        for step in some:
            if submitted.push.op is UpdateOp.DELETE_ROWS:
                continue
            uid = step.live.uid
            lives[uid] = step.live
            rooms[uid] = rooms.get(uid, 0) + step.ids.size
            # A row that is created begins with its first slots, whatever the push does.
            if submitted.push.op is UpdateOp.APPLY_GRADIENTS or step.created is not None:
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
    steps: Sequence[Sequence[Step]],
    images: _Images,
    resolved: Steps,
) -> tuple[int, GatherdError] | None:
    """Compute the pushes that aren't refused; return the first that fails, and its error."""
    for number, (submitted, some) in enumerate(zip(batch, steps, strict=True)):
        if submitted.push.op is UpdateOp.DELETE_ROWS:
            continue
        for step in some:
            opened = resolved.opened.get(step.live.uid)
            try:
                _do(submitted.push.op, step, images[step.live.uid][1], opened and opened[1])
            except NonfiniteValues as error:
                return number, _in_table(error, step)
    return None


def _do(op: UpdateOp, step: Step, images: RowImages, opened: OpenBatch | None) -> None:
    """Compute one step."""
    if opened is not None:
        opened.begin_images(images, step.created, with_vectors=op is not UpdateOp.ASSIGN)
    match op:
        case UpdateOp.SCATTER_ADD:
            images.scatter_add(step.ids, step.values)
        case UpdateOp.APPLY_GRADIENTS:
            images.apply_gradients(step.ids, step.values, step.lr)
        case UpdateOp.ASSIGN:
            images.assign(step.ids, step.values)
        case UpdateOp.DELETE_ROWS:
            raise AssertionError("nothing is computed")
    if opened is not None:
        opened.end_images(images)


def _in_table(error: NonfiniteValues, step: Step) -> NonfiniteValues:
    """The error of a step, which names its table, and keys where rows have no ids."""
    metadata = {**error.metadata, "table": step.live.name}
    message = error.message
    if step.keys is not None:
        rows = np.array(metadata.pop("rows").split(", "), np.int64)
        keys = shown_keys(step.keys, [int(np.flatnonzero(step.ids == row)[0]) for row in rows])
        metadata["keys"] = named = ", ".join(keys)
        message = (
            f"the update would leave NaN or infinity (too large for "
            f"{step.live.mapped.dtype.value}, or in its values) in {metadata['count']} rows, the "
            f"first by key {named}; nothing was changed"
        )
    return NonfiniteValues(f"table {step.live.name!r}: {message}", metadata)


def _finished(images: _Images, resolved: Steps) -> list[tuple[LiveVersion, VersionImages]]:
    """What is logged and stored of every table that changed."""
    listed = []
    for uid, (live, made) in images.items():
        if uid not in resolved.opened:
            found = VersionImages(
                uid, live.version, made.rows, made.weights, made.slots, made.scalars
            )
            listed.append((live, found))
    for uid, (live, opened) in resolved.opened.items():
        rows = images[uid][1] if uid in images else None
        listed.append((live, opened.finish(rows, uid, live.version)))
    return listed


def _record(
    batch: Sequence[Submitted],
    outcomes: Sequence[PushResult | GatherdError],
    images: Sequence[tuple[LiveVersion, VersionImages]],
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
    listed, arrays = list_images([one for _, one in images])
    return pack({"pushes": pushes, "images": listed}, arrays)


def store(commit: Commit, versions: Versions) -> None:
    """Make a logged commit visible."""
    for live, images in commit.images:
        live.mapped.apply(images)
        versions.changed(live.uid, live.version, commit.pushed[live.uid])
    for opened in commit.opened:
        opened.commit()


def remember(frame: Frame, window: Window) -> None:
    """Enter the pushes of a logged frame into the window."""
    lsn = frame.first_lsn
    for listed_id, digest, pushed_versions, *counts in frame.record.directory["pushes"]:
        request_id: RequestId = request_id_from_json(listed_id)
        result = PushResult.of(lsn, tuple(pushed_versions), *counts)
        window.add(request_id, bytes.fromhex(digest), result)
        lsn += 1
