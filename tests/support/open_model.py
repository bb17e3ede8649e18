"""An open table as a dict from keys to rows: what its files have to hold, whatever row a key has.

The arithmetic is that of training/images.py, as in the durability suite's oracle; the files are
read here with NumPy alone, from the layout in the store's open_files.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, convert
from gatherd.store.initial import Initial
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.open_spec import OpenSpec
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.training.optimizer import Optimizer, SlotShape
from gatherd_server.types import UpdateOp

Key = bytes | int


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row: its bytes, its slots' bytes by name, and how many pushes changed it."""

    weights: bytes
    slots: Mapping[str, bytes]
    count: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and (self.weights, dict(self.slots), self.count) == (
            other.weights, dict(other.slots), other.count,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash(self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """An open table's contents. A push makes another."""

    spec: OpenSpec
    dtype: DType
    dim: int
    optimizer: Optimizer
    rows: Mapping[Key, Row] = field(default_factory=dict)
    scalars: Mapping[str, int] = field(default_factory=dict)

    def pushed(
        self, op: UpdateOp, keys: Keys, values: NDArray[np.float32], lr: float | None = None
    ) -> "OpenModel":
        """The contents after a push that creates the rows that it needs."""
        listed = keys_of(keys)
        if op is UpdateOp.DELETE_ROWS:
            return replace(self, rows={k: r for k, r in self.rows.items() if k not in listed})
        if not listed:
            return self
        each = list(dict.fromkeys(listed))
        begins = {key: self.rows.get(key) or self.first(key) for key in each}
        base = self._trained([begins[key] for key in each])
        images = RowImages(base, self.optimizer, len(listed))
        places = {key: place for place, key in enumerate(each)}
        ids = np.array([places[key] for key in listed], np.int64)
        values = np.ascontiguousarray(values.reshape(ids.size, self.dim))
        match op:
            case UpdateOp.SCATTER_ADD:
                images.scatter_add(ids, values)
            case UpdateOp.ASSIGN:
                images.assign(ids, values)
            case UpdateOp.APPLY_GRADIENTS:
                images.apply_gradients(ids, values, lr)
        rows = dict(self.rows)
        for position, row in enumerate(images.rows.tolist()):
            key = each[row]
            slots = {name: slot[position].tobytes() for name, slot in images.slots.items()}
            weights = images.weights[position].tobytes()
            rows[key] = Row(weights, slots, begins[key].count + 1)
        scalars = {name: int(scalar[0]) for name, scalar in images.scalars.items()}
        return replace(self, rows=rows, scalars={**self.scalars, **scalars})

    def first(self, key: Key) -> Row:
        """The row that a key begins with, before a push."""
        keys: Keys = np.array([key], np.int64) if isinstance(key, int) else StringKeys.of([key])
        law = self.spec.init.distribution(self.spec.rows_max, self.dim)
        drawn = Initial(self.spec.seed, self.dim, law).vectors(keys)
        stored = np.empty(drawn.shape, self.dtype.storage)
        convert(drawn, DType.FLOAT32, stored, self.dtype)
        return Row(stored.tobytes(), self.first_slots(), 0)

    def with_optimizer(self, optimizer: Optimizer) -> "OpenModel":
        """The same rows with another optimizer's first slots, unless its slots are the same."""
        if optimizer.slots == self.optimizer.slots:
            return replace(self, optimizer=optimizer)
        fresh = replace(self, optimizer=optimizer, scalars={})
        slots = fresh.first_slots()
        return replace(fresh, rows={k: replace(r, slots=slots) for k, r in self.rows.items()})

    def first_slots(self) -> dict[str, bytes]:
        """The slots that a row begins with."""
        return {
            slot.name: np.full(self._width(slot.shape), slot.initial, np.float32).tobytes()
            for slot in self.optimizer.slots
            if slot.shape is not SlotShape.TABLE
        }

    def _width(self, shape: SlotShape) -> int:
        return self.dim if shape is SlotShape.ELEMENT else 1

    def _trained(self, rows: Sequence[Row]) -> TrainedRows:
        weights = np.frombuffer(b"".join(row.weights for row in rows), np.uint8)
        slots: dict[str, NDArray[Any]] = {}
        for slot in self.optimizer.slots:
            if slot.shape is SlotShape.TABLE:
                slots[slot.name] = np.array([self.scalars.get(slot.name, 0)], np.int64)
            else:
                raw = np.frombuffer(b"".join(row.slots[slot.name] for row in rows), np.float32)
                slots[slot.name] = raw.reshape(len(rows), self._width(slot.shape)).copy()
        return TrainedRows(weights.reshape(len(rows), -1).copy(), self.dtype, self.dim, slots)


def keys_of(keys: Keys) -> list[Key]:
    """The keys one by one, flat."""
    return list(keys.tolist() if isinstance(keys, StringKeys) else keys.reshape(-1).tolist())


def read_open(folder: Path) -> tuple[dict[Key, Row], dict[str, int]]:
    """What the files of an open version hold: rows by key, and the slots of the whole table.

    AssertionError when two rows have one key, or two keys share bytes of the heap.
    """
    manifest = json.loads((folder / "manifest.json").read_bytes())
    kind = KeyKind(manifest["open"]["keys"])
    stamps = np.load(folder / "stamps.npy")
    counts = np.load(folder / "counts.npy")
    weights = np.load(folder / "weights.npy")
    weights = weights.view(np.uint8).reshape(len(weights), -1)
    slots = {path.stem.removeprefix("slot_"): np.load(path) for path in folder.glob("slot_*.npy")}
    whole = {name: int(slot[0]) for name, slot in slots.items() if slot.ndim == 1}
    used = np.flatnonzero(stamps).tolist()
    assert np.unique(stamps[used]).size <= len(used)
    names: Sequence[Key] = (
        _string_keys(folder, used) if kind is KeyKind.BYTES else _integer_keys(folder, used)
    )
    rows: dict[Key, Row] = {}
    for row, key in zip(used, names, strict=True):
        assert key not in rows, f"{key!r} has two rows in {folder}"
        by_name = {name: slot[row].tobytes() for name, slot in slots.items() if slot.ndim > 1}
        rows[key] = Row(weights[row].tobytes(), by_name, int(counts[row]))
    return rows, whole


def _integer_keys(folder: Path, rows: list[int]) -> list[int]:
    return list(np.load(folder / "keys.npy")[rows].tolist())


def _string_keys(folder: Path, rows: list[int]) -> list[bytes]:
    heap = (folder / "keys.heap").read_bytes()
    found, spans = [], []
    for entry in np.load(folder / "keys.entries.npy")[rows].tolist():
        begin, length = (entry >> 11) * 8, entry & 2047
        found.append(heap[begin : begin + length])
        spans.append((begin, begin + -(-length // 8) * 8))
    spans.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(spans)), "places overlap"
    return found


def check_open(folder: Path, model: OpenModel) -> None:
    """Hold a version's files against the model. AssertionError, naming keys that differ."""
    rows, whole = read_open(folder)
    lost, extra = model.rows.keys() - rows.keys(), rows.keys() - model.rows.keys()
    assert not lost, f"{folder} lacks {sorted(lost, key=str)[:5]}"
    assert not extra, f"{folder} has {sorted(extra, key=str)[:5]}, which nobody pushed"
    wrong = [key for key, row in model.rows.items() if rows[key] != row]
    shown = [(key, rows[key], model.rows[key]) for key in wrong[:2]]
    assert not wrong, f"{folder}: {len(wrong)} rows differ: {shown}"
    expected = {
        slot.name: model.scalars.get(slot.name, 0)
        for slot in model.optimizer.slots
        if slot.shape is SlotShape.TABLE
    }
    assert whole == expected, f"{folder}: {whole}, not {expected}"
