"""What a data dir must hold after each LSN: a replay of what was done, on arrays in memory.

Each push is computed alone and stored, as if it had been the only one of its batch; the arithmetic
is that of training/images.py, which other tests hold against torch, Keras and formulas.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import read_catalog, version_dir
from gatherd.store.checksums import FileChecksums, document_crc, verify_blocks
from gatherd.store.dtypes import DType
from gatherd.store.query import ByKey
from gatherd.store.stripes import SEQ_NAME
from gatherd_server.data_dir.catalog_changes import kept_versions
from gatherd_server.data_dir.uploads.spec import Committed, UploadSpec
from gatherd_server.snapshots.freezing import FROZEN_NAME
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    AddStaged,
    CloneTable,
    CreateTable,
    DeleteAlias,
    DeleteTable,
    Publish,
    Push,
    PushResult,
    RenameTable,
    ReplaceTable,
    Rollback,
    SetAlias,
    SetOptimizer,
    TableChange,
    UpdateOp,
)
from support.open_model import OpenModel, check_open

Contents = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A version's files: `weights` as bytes (rows, row bytes), and the slots by name.

    An open version's are in `opened` instead.
    """

    dtype: DType
    dim: int
    optimizer: Optimizer | None
    weights: NDArray[np.uint8]
    slots: Contents
    keys: tuple[bytes, ...] | None = None
    opened: OpenModel | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table's versions, ascending, the live one, and the aliases that point to it."""

    live: int
    versions: dict[int, Version]
    aliases: frozenset[str] = frozenset()

    @property
    def keys(self) -> tuple[bytes, ...] | None:
        return self.versions[self.live].keys


State = dict[str, Table]


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An upload: all its rows, how many were `sent` and how many of them acknowledged.

    `done` is the answer to its commit.
    """

    spec: UploadSpec
    rows: NDArray[np.float32]
    keys: tuple[bytes, ...]
    is_begun: bool = False
    sent: int = 0
    acknowledged: int = 0
    done: Committed | None = None


@dataclass(slots=True, eq=False)
class Did:
    """Something that takes an LSN; `lsn` is 0 until it was acknowledged.

    `rows` are those of a table that a change brings.
    """

    what: Push | TableChange
    digest: bytes = b""
    result: PushResult | None = None
    rows: Version | None = None


def after(state: State, did: Did, keep_versions: int) -> State:
    """The state one LSN later."""
    what = did.what
    match what:
        case Push():
            return _pushed(state, what)
        case CreateTable() | AddStaged():
            assert did.rows is not None
            return state | {what.table: Table(1, {1: did.rows})}
        case DeleteTable():
            return {name: table for name, table in state.items() if name != what.table}
        case RenameTable() | SetAlias() | DeleteAlias():
            return _named(state, what)
        case CloneTable():
            source = state[meant(state, what.source)]
            return state | {what.table: Table(1, {1: source.versions[source.live]})}
    name = meant(state, what.table)
    return state | {name: _changed(state, name, did, keep_versions)}


def meant(state: State, name: str) -> str:
    """The table that `name` is, or is an alias of."""
    return next((table for table, one in state.items() if name in one.aliases), name)


def _named(state: State, what: RenameTable | SetAlias | DeleteAlias) -> State:
    if isinstance(what, RenameTable):
        state = dict(state)
        table = state.pop(what.table)
        kept = {what.table} if what.keep_alias else set()
        return state | {what.to: replace(table, aliases=table.aliases | kept)}
    others = {
        name: replace(table, aliases=table.aliases - {what.alias}) for name, table in state.items()
    }
    if isinstance(what, DeleteAlias):
        return others
    table = others[what.table]
    return others | {what.table: replace(table, aliases=table.aliases | {what.alias})}


def _changed(state: State, name: str, did: Did, keep_versions: int) -> Table:
    what, table = did.what, state[name]
    new = max(table.versions) + 1
    live = table.versions[table.live]
    match what:
        case Rollback():
            older = max(version for version in table.versions if version < table.live)
            return _with(table, {}, what.version or older, keep_versions)
        case Publish():
            made = live
            if what.staged:
                assert did.rows is not None
                made = _carried(live, did.rows, what)
        case ReplaceTable():
            source = state[meant(state, what.source)]
            made = source.versions[source.live]
        case SetOptimizer():
            optimizer = Optimizer.changed(live.optimizer, what.optimizer)
            keeps = live.optimizer is not None and live.optimizer.slots == optimizer.slots
            slots = live.slots if keeps else first_slots(optimizer, len(live.weights), live.dim)
            made = replace(live, optimizer=optimizer, slots=slots)
            if live.opened is not None:
                made = replace(made, slots={}, opened=live.opened.with_optimizer(optimizer))
            if keeps:  # in place
                return replace(table, versions=table.versions | {table.live: made})
        case _:
            raise AssertionError(what)
    return _with(table, {new: made}, new, keep_versions)


def _carried(live: Version, new: Version, how: Publish) -> Version:
    """`new` with the state, and by keep_rows the contents, of the rows that stay."""
    if live.optimizer is None or new.optimizer is None or how.reset_state:
        return new
    old_rows = dict(zip(live.keys or range(len(live.weights)), itertools.count(), strict=False))
    new_keys = new.keys or range(len(new.weights))
    pairs = [(i, old_rows[key]) for i, key in enumerate(new_keys) if key in old_rows]
    to, of = [i for i, _ in pairs], [j for _, j in pairs]
    weights = new.weights.copy()
    if how.keep_rows:
        weights[to] = live.weights[of]
    slots = {name: slot.copy() for name, slot in new.slots.items()}
    if (live.optimizer.slots, live.dim) == (new.optimizer.slots, new.dim):
        for name, slot in slots.items():
            if slot.dtype == np.int64:
                slot[...] = live.slots[name]
            else:
                slot[to] = live.slots[name][of]
    return replace(new, weights=weights, slots=slots)


def _with(table: Table, new: dict[int, Version], live: int, keep: int) -> Table:
    versions = table.versions | new
    kept = kept_versions(set(versions), live, table.live, keep)
    return replace(table, live=live, versions={v: versions[v] for v in kept})


def first_slots(optimizer: Optimizer, row_count: int, dim: int) -> Contents:
    """The slots of a table that wasn't trained yet."""
    found = {}
    for slot in optimizer.slots:
        dtype, shape = slot.array(row_count, dim)
        found[slot.name] = np.full(shape, slot.initial, dtype)
    return found


def _pushed(state: State, push: Push) -> State:
    state = dict(state)
    for update in push.updates:
        of = meant(state, update.table)
        table = state[of]
        live = table.versions[table.live]
        assert live.optimizer is not None
        if live.opened is not None:
            assert isinstance(update.asked, ByKey)
            opened = live.opened.pushed(push.op, update.asked.keys, update.values, update.lr)
            fresh = replace(live, opened=opened)
            state[of] = replace(table, versions=table.versions | {table.live: fresh})
            continue
        slots = {name: slot.copy() for name, slot in live.slots.items()}
        weights = live.weights.copy()
        asked = update.asked
        if isinstance(asked, ByKey):
            assert table.keys is not None
            ids = np.array([table.keys.index(key) for key in asked.keys.tolist()], np.int64)
        else:
            ids = np.asarray(asked, np.int64).reshape(-1)
        values = np.ascontiguousarray(update.values.reshape(ids.size, live.dim))
        rows = TrainedRows(weights, live.dtype, live.dim, slots)
        with_slots = push.op is UpdateOp.APPLY_GRADIENTS
        images = RowImages(rows, live.optimizer, ids.size, with_slots=with_slots)
        match push.op:
            case UpdateOp.SCATTER_ADD:
                images.scatter_add(ids, values)
            case UpdateOp.ASSIGN:
                images.assign(ids, values)
            case UpdateOp.APPLY_GRADIENTS:
                images.apply_gradients(ids, values, update.lr)
        weights[images.rows] = images.weights
        for name, changed in images.slots.items():
            slots[name][images.rows] = changed
        for name, scalar in images.scalars.items():
            slots[name][...] = scalar
        fresh = replace(live, weights=weights, slots=slots)
        state[of] = replace(table, versions=table.versions | {table.live: fresh})
    return state


def check(data_dir: Path, state: State, *, is_settled: bool) -> None:
    """Hold a data dir's files against the state. AssertionError, saying what differs.

    `is_settled` says that a writer has finished what a crash left half done.
    """
    catalog = read_catalog(data_dir)
    found = {name: (entry.live, entry.versions) for name, entry in catalog.tables.items()}
    expected = {name: (table.live, (*table.versions,)) for name, table in state.items()}
    assert found == expected, f"the catalog has {found}, not {expected}"
    aliases = {alias: name for name, table in state.items() for alias in table.aliases}
    assert catalog.aliases == aliases, f"the aliases are {catalog.aliases}, not {aliases}"
    for name, table in state.items():
        for number, version in table.versions.items():
            folder = version_dir(data_dir, catalog.tables[name].folder_of(name), number)
            is_live = number == table.live
            changed = catalog.tables[name].optimizer_of(number)
            _check_version(f"{name} v{number} ({is_live=})", folder, version, changed)
            if version.optimizer is not None:
                check_frozen(folder, is_live=is_live, is_settled=is_settled)


def _check_version(
    what: str, folder: Path, version: Version, changed: dict[str, Any] | None
) -> None:
    """`changed` is the catalog's optimizer of the version, if it has one."""
    if version.opened is not None:
        check_open(folder, version.opened)
        _check_rest(what, folder, version, changed)
        return
    weights = np.load(folder / "weights.npy", allow_pickle=False)
    rows = weights.view(np.uint8).reshape(len(weights), -1)
    pairs = [("weights", rows, version.weights)]
    for name, slot in version.slots.items():
        pairs.append((name, np.load(folder / f"slot_{name}.npy"), slot))
    for name, have, want in pairs:
        assert have.shape == want.shape, f"{what}: {name} has shape {have.shape}, not {want.shape}"
        wrong = np.flatnonzero((have != want).reshape(len(want), -1).any(axis=1))
        assert not wrong.size, f"{what}: rows {wrong[:8].tolist()} of {name} differ"
    slots = {path.stem.removeprefix("slot_") for path in folder.glob("slot_*.npy")}
    assert slots == set(version.slots), f"{what}: slots {slots}"
    _check_rest(what, folder, version, changed)


def _check_rest(what: str, folder: Path, version: Version, changed: dict[str, Any] | None) -> None:
    if version.optimizer is not None:
        odd = np.flatnonzero(np.frombuffer((folder / SEQ_NAME).read_bytes(), "<u4") & 1)
        assert not odd.size, f"{what}: stripes {odd[:8].tolist()} can't be read"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["crc32"] == document_crc(manifest), f"{what}: the manifest is damaged"
    optimizer = version.optimizer.to_json() if version.optimizer else None
    found = changed or manifest["optimizer"]
    assert found == optimizer, f"{what}: {found}"


def check_frozen(folder: Path, *, is_live: bool, is_settled: bool) -> None:
    """The checksums of a version that doesn't move any more are right, and no other has any."""
    path = folder / FROZEN_NAME
    if is_live:
        assert not path.exists(), f"{path}: the version is live"
        return
    if not path.exists():
        assert not is_settled, f"{path} isn't there"
        return
    document = json.loads(path.read_bytes())
    assert document["crc32"] == document_crc(document), f"{path} is damaged"
    for name, entry in document["checksums"].items():
        for _ in verify_blocks(folder / name, FileChecksums.from_json(entry, name)):
            pass


def states_after(begin: State, history: Sequence[Did], keep_versions: int) -> list[State]:
    """The state before the first, after the first, …, after the last."""
    states = [begin]
    for did in history:
        states.append(after(states[-1], did, keep_versions))
    return states
