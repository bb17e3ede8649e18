"""What the tables must hold: every acknowledged push once, in the order of the LSNs, one by one.

The server computes many pushes as one batch and stores them into mapped files; here each push is
computed alone, on arrays in memory. The arithmetic is the same (training/images.py, which other
tests hold against torch, Keras and formulas), so the two have to agree to the last bit.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crash.workload import drawn_push
from gatherd.store.catalog import MANIFEST_NAME, WEIGHTS_NAME, read_catalog, version_dir
from gatherd.store.dtypes import DType
from gatherd.store.open_files import OPEN
from gatherd.store.open_spec import OpenSpec
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import UpdateOp
from support.open_model import OpenModel, check_open, read_open


@dataclass(slots=True, eq=False)
class VersionState:
    """One version's rows, as bytes, and its slots; an open version's are in `opened`."""

    weights: NDArray[np.uint8]
    slots: dict[str, NDArray[Any]]
    opened: OpenModel | None = None

    def copy(self) -> "VersionState":
        slots = {name: slot.copy() for name, slot in self.slots.items()}
        return VersionState(self.weights.copy(), slots, self.opened)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A push that was answered."""

    number: int
    lsn: int
    versions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Switched:
    """A publish or rollback that was answered, or of which it was found out that it was made.

    `lsn` None when nobody was told it. `copied` says that the version began as a copy of `before`.
    """

    lsn: int | None
    table: str
    before: int
    after: int
    copied: bool


def read_version(folder: Path) -> tuple[VersionState, dict[str, Any]]:
    """A version's files as they are, and its manifest."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    if OPEN in manifest:
        spec, optimizer = OpenSpec.from_json(manifest[OPEN]), manifest["optimizer"]
        model = OpenModel(
            spec, DType(manifest["dtype"]), manifest["dim"], Optimizer.from_json(optimizer)
        )
        rows, scalars = read_open(folder)
        return VersionState(
            np.empty((0, 0), np.uint8), {}, replace(model, rows=rows, scalars=scalars)
        ), manifest
    weights = np.load(folder / WEIGHTS_NAME, allow_pickle=False)
    raw = weights.view(np.uint8).reshape(len(weights), -1)
    slots = {path.stem[5:]: np.load(path) for path in sorted(folder.glob("slot_*.npy"))}
    return VersionState(raw, slots), manifest


@dataclass(slots=True, eq=False)
class Oracle:
    """The versions of a data dir's tables, replayed from how they began."""

    states: dict[tuple[str, int], VersionState]
    manifests: dict[str, dict[str, Any]]
    last: dict[tuple[str, int], int] = field(default_factory=dict)
    """The number of the last push of a row, for messages."""

    @classmethod
    def begin(cls, data_dir: Path) -> "Oracle":
        """From a data dir that nobody writes to."""
        states, manifests = {}, {}
        for name, entry in read_catalog(data_dir).tables.items():
            for version in entry.versions:
                folder = version_dir(data_dir, name, version)
                states[name, version], manifests[name] = read_version(folder)
        return cls(states, manifests)

    def push(self, done: Acknowledged) -> None:
        """Do an acknowledged push, on the versions that it was answered with."""
        push = drawn_push(done.number)
        assert set(done.versions) == set(push.updates), (done, set(push.updates))
        for table, (ids, values) in push.updates.items():
            state = self.states[table, done.versions[table]]
            manifest = self.manifests[table]
            if state.opened is not None:
                state.opened = state.opened.pushed(push.op, ids, values, push.lr)
                continue
            rows = TrainedRows(
                state.weights, DType(manifest["dtype"]), manifest["dim"], state.slots
            )
            with_slots = push.op is UpdateOp.APPLY_GRADIENTS
            optimizer = Optimizer.from_json(manifest["optimizer"])
            images = RowImages(rows, optimizer, ids.size, with_slots=with_slots)
            match push.op:
                case UpdateOp.SCATTER_ADD:
                    images.scatter_add(ids, values)
                case UpdateOp.ASSIGN:
                    images.assign(ids, values)
                case UpdateOp.APPLY_GRADIENTS:
                    images.apply_gradients(ids, values, push.lr)
                case UpdateOp.DELETE_ROWS:
                    raise AssertionError("a closed table keeps its rows")
            state.weights[images.rows] = images.weights
            for name, changed in images.slots.items():
                state.slots[name][images.rows] = changed
            for name, scalar in images.scalars.items():
                state.slots[name][...] = scalar
            self.last.update(((table, row), done.number) for row in images.rows.tolist())

    def switch(self, switched: Switched) -> None:
        """Do a publish; a rollback changes no version's contents."""
        if switched.copied:
            before = self.states[switched.table, switched.before]
            self.states[switched.table, switched.after] = before.copy()

    def check(self, data_dir: Path, when: str) -> int:
        """Hold the files of every version that the catalog names against this; how many versions.

        AssertionError naming the first rows that differ, and the push that was last on each.
        """
        count = 0
        for name, entry in read_catalog(data_dir).tables.items():
            for version in entry.versions:
                where = f"{when}: {name} v{version} (live: v{entry.live})"
                folder, expected = version_dir(data_dir, name, version), self.states[name, version]
                if expected.opened is not None:
                    check_open(folder, expected.opened)
                    count += 1
                    continue
                found, _ = read_version(folder)
                assert set(found.slots) == set(expected.slots), where
                pairs = [("weights", found.weights, expected.weights)]
                pairs += [
                    (slot, found.slots[slot], expected.slots[slot]) for slot in expected.slots
                ]
                for what, have, want in pairs:
                    self._compare(f"{where}: {what}", name, have, want)
                count += 1
        return count

    def _compare(self, where: str, table: str, have: NDArray[Any], want: NDArray[Any]) -> None:
        assert have.shape == want.shape, where
        as_bytes = [array.view(np.uint8).reshape(len(array), -1) for array in (have, want)]
        wrong = np.flatnonzero((as_bytes[0] != as_bytes[1]).any(axis=1)).tolist()
        last = {row: self.last.get((table, row)) for row in wrong[:5]}
        assert not wrong, f"{where}: {len(wrong)} rows differ; row: last push = {last}"


def placed(switches: Iterable[Switched], missing: Iterable[int]) -> list[tuple[int, Switched]]:
    """The LSN of every switch; those that nobody was told get the missing ones, in their order.

    AssertionError when there are more or fewer LSNs missing than that, or at other places.
    """
    free = sorted(missing)
    found: list[tuple[int, Switched]] = []
    for switched in switches:
        lsn = switched.lsn
        if lsn is None:
            assert free, f"{switched} was made, and took no LSN"
            lsn = free.pop(0)
        assert not found or found[-1][0] < lsn, f"{switched} has LSN {lsn}, after {found[-1]}"
        found.append((lsn, switched))
    assert not free, f"nobody knows of LSNs {free[:10]} (and {len(free[10:])} more)"
    return found
