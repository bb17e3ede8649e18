"""Optimizers' state beside the weights: which slots an optimizer keeps, and their files.

A slot is slot_<name>.npy in a version's folder: float32 (rows, dim) when every element has a value,
float32 (rows, 1) when every row has one, and int64 (1,) for a count of the whole table. What a
table is trained with stands in its manifest:

    "optimizer": {"name", "lr"}

The slots and their first values are those of torch.optim (SGD, Adagrad, SparseAdam), of Keras'
Ftrl, and of FBGEMM's row-wise Adagrad. Nothing applies gradients in this release; what is made here
is what a table needs to be trained from the state it was imported in.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from gatherd.store.checksums import FileChecksums, file_checksums
from gatherd.store.format import npy_header
from gatherd_server.storage.files import Files

LR_DEFAULT = 0.01
# Keras' Ftrl begins its accumulator here, so that the first step divides by no zero.
FTRL_INITIAL = 0.1
FILL_BYTES = 4 << 20


class SlotShape(Enum):
    """What has a value of its own in a slot."""

    ELEMENT = "element"
    ROW = "row"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """One slot and the value that it begins with."""

    name: str
    shape: SlotShape
    initial: float = 0.0

    @property
    def file_name(self) -> str:
        """Its file in a version's folder."""
        return f"slot_{self.name}.npy"

    def array(self, row_count: int, dim: int) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
        """The dtype and the shape of its array."""
        match self.shape:
            case SlotShape.ELEMENT:
                return np.dtype("<f4"), (row_count, dim)
            case SlotShape.ROW:
                return np.dtype("<f4"), (row_count, 1)
            case SlotShape.TABLE:
                return np.dtype("<i8"), (1,)

    def file_bytes(self, row_count: int, dim: int) -> int:
        """The size of its file."""
        dtype, shape = self.array(row_count, dim)
        header = npy_header(dtype.str, shape)
        return len(header) + dtype.itemsize * int(np.prod(shape, dtype=object))


class OptimizerName(Enum):
    """How a table can be trained."""

    SGD = "sgd"
    ADAGRAD = "adagrad"
    ROWWISE_ADAGRAD = "rowwise-adagrad"
    ADAM = "adam"
    FTRL = "ftrl"


SLOTS: dict[OptimizerName, tuple[SlotSpec, ...]] = {
    OptimizerName.SGD: (),
    OptimizerName.ADAGRAD: (SlotSpec("sum", SlotShape.ELEMENT),),
    OptimizerName.ROWWISE_ADAGRAD: (SlotSpec("sum", SlotShape.ROW),),
    OptimizerName.ADAM: (
        SlotSpec("step", SlotShape.TABLE),
        SlotSpec("exp_avg", SlotShape.ELEMENT),
        SlotSpec("exp_avg_sq", SlotShape.ELEMENT),
    ),
    OptimizerName.FTRL: (
        SlotSpec("accumulator", SlotShape.ELEMENT, FTRL_INITIAL),
        SlotSpec("linear", SlotShape.ELEMENT),
    ),
}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What a table is trained with."""

    name: OptimizerName
    lr: float = LR_DEFAULT

    @property
    def slots(self) -> tuple[SlotSpec, ...]:
        """The slots that it keeps."""
        return SLOTS[self.name]

    def to_json(self) -> dict[str, object]:
        """What a manifest holds of it."""
        return {"name": self.name.value, "lr": self.lr}


def write_slots(
    files: Files, folder: Path, optimizer: Optimizer, row_count: int, dim: int
) -> dict[str, FileChecksums]:
    """Write the first state of every slot, durable but for the files' names; their checksums.

    StorageError when the disk is full or fails.
    """
    found = {}
    for slot in optimizer.slots:
        path = folder / slot.file_name
        _write_slot(files, path, slot, row_count, dim)
        found[slot.file_name] = file_checksums(path)
    return found


def _write_slot(files: Files, path: Path, slot: SlotSpec, row_count: int, dim: int) -> None:
    dtype, shape = slot.array(row_count, dim)
    header = npy_header(dtype.str, shape)
    files.write_new(path, header)
    with open(path, "r+b", buffering=0) as file:
        end = slot.file_bytes(row_count, dim)
        # What is allocated and never written reads as zeros.
        files.allocate(file.fileno(), end, path)
        if slot.initial:
            block = np.full(FILL_BYTES // dtype.itemsize, slot.initial, dtype).view(np.uint8).data
            for position in range(len(header), end, FILL_BYTES):
                part = block[: min(FILL_BYTES, end - position)]
                files.write_at(file.fileno(), part, position, path)
        files.sync(file.fileno(), path)
