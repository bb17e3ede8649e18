"""Pushes as NumPy, a row at a time, written from the formulas in docs/optimizers.md; the oracle."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, convert
from gatherd_server.training.images import TrainedRows
from gatherd_server.training.optimizer import Optimizer, OptimizerName

F32 = np.float32


def stored(values: NDArray[np.float32], dtype: DType) -> NDArray[Any]:
    """`values` in a table's storage."""
    bits = np.empty(values.shape, dtype.storage)
    convert(np.ascontiguousarray(values, F32), DType.FLOAT32, bits, dtype)
    return bits


def widened(bits: NDArray[Any], dtype: DType) -> NDArray[np.float32]:
    """What is stored, as float32."""
    wide = np.empty(bits.shape, F32)
    convert(bits, dtype, wide, DType.FLOAT32)
    return wide


def trained_rows(values: NDArray[np.float32], dtype: DType, optimizer: Optimizer) -> TrainedRows:
    """A table of `values`, as it is when training begins."""
    bits = stored(values, dtype)
    slots = {}
    for slot in optimizer.slots:
        kind, shape = slot.array(*values.shape)
        slots[slot.name] = np.full(shape, slot.initial, kind)
    raw = np.ascontiguousarray(bits).view(np.uint8).reshape(len(bits), -1)
    return TrainedRows(raw, dtype, values.shape[1], slots)


def values_of(weights: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    """Rows as bytes, as float32."""
    return widened(weights.view(dtype.storage), dtype)


@dataclass
class Oracle:
    """A table that changes at every push."""

    optimizer: Optimizer
    dtype: DType
    rows: NDArray[np.float32]
    slots: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = widened(stored(self.rows, self.dtype), self.dtype)
        for slot in self.optimizer.slots:
            kind, shape = slot.array(*self.rows.shape)
            self.slots[slot.name] = np.full(shape, slot.initial, kind)

    def scatter_add(self, ids: NDArray[np.int64], deltas: NDArray[np.float32]) -> None:
        sums = self.rows.copy()
        np.add.at(sums, ids, deltas)
        self._keep(ids, sums)

    def assign(self, ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        new = self.rows.copy()
        for row, values in zip(ids, rows, strict=True):
            new[row] = values
        self._keep(ids, new)

    def apply_gradients(
        self, ids: NDArray[np.int64], grads: NDArray[np.float32], lr: float | None = None
    ) -> None:
        o = self.optimizer
        touched = [row for row in np.unique(ids) if row != o.padding_id]
        if not touched:
            return
        if "step" in self.slots:
            self.slots["step"] += 1
        new = self.rows.copy()
        for row in touched:
            g: NDArray[Any] = np.zeros(new.shape[1], F32)
            for gradient in grads[ids == row]:
                g = g + gradient
            # Keras adds l1 · Σ|w| + l2 · Σw² to the loss, so their gradients to the gradient.
            if o.regularizer_l1 is not None:
                g = g + F32(o.regularizer_l1) * np.sign(new[row])
            if o.regularizer_l2 is not None:
                g = g + F32(2 * o.regularizer_l2) * new[row]
            if o.clip_value is not None:
                g = np.clip(g, F32(-o.clip_value), F32(o.clip_value))
            if o.clip_row_norm is not None:
                norm = float(np.linalg.norm(g.astype(np.float64)))
                if norm > o.clip_row_norm:
                    g = g * F32(o.clip_row_norm / norm)
            rate = F32(lr if lr is not None else o.lr)
            if o.decoupled_weight_decay is not None:
                new[row] -= rate * F32(o.decoupled_weight_decay) * new[row]
            new[row] = self._constrained(self._step(row, new[row], g, rate))
        self._keep(ids, new)

    def _constrained(self, w: Any) -> Any:
        """Keras' NonNeg, MaxNorm, UnitNorm and MinMaxNorm of one row."""
        o = self.optimizer
        if o.non_neg:
            w = np.maximum(w, 0)
        norm = float(np.linalg.norm(w.astype(np.float64)))
        if o.unit_norm:
            return w * F32(1 / (norm + 1e-7))
        if o.max_norm is not None:
            low, rate = o.min_norm or 0.0, 1.0 if o.norm_rate is None else o.norm_rate
            desired = rate * np.clip(norm, low, o.max_norm) + (1 - rate) * norm
            return w * F32(desired / (norm + 1e-7))
        return w

    def _keep(self, ids: NDArray[np.int64], new: NDArray[np.float32]) -> None:
        rounded = widened(stored(new, self.dtype), self.dtype)
        for row in np.unique(ids):
            if row != self.optimizer.padding_id:
                self.rows[row] = rounded[row]

    def _step(self, row: int, w: Any, g: Any, lr: Any) -> Any:
        o, s = self.optimizer, self.slots
        match o.name:
            case OptimizerName.SGD:
                g = g + F32(o.weight_decay) * w
                if o.momentum > 0:
                    s["momentum"][row] = g = F32(o.momentum) * s["momentum"][row] + g
                return w - lr * g
            case OptimizerName.ADAGRAD:
                s["sum"][row] += g * g
                return w - lr * g / (np.sqrt(s["sum"][row]) + F32(o.eps))
            case OptimizerName.ROWWISE_ADAGRAD:
                s["sum"][row] += F32(np.mean(g.astype(np.float64) ** 2))
                return w - lr / (np.sqrt(s["sum"][row]) + F32(o.eps)) * g
            case OptimizerName.ADAM:
                t = int(s["step"][0])
                s["exp_avg"][row] = F32(o.beta1) * s["exp_avg"][row] + F32(1 - o.beta1) * g
                s["exp_avg_sq"][row] = F32(o.beta2) * s["exp_avg_sq"][row] + F32(1 - o.beta2) * g**2
                m, v = s["exp_avg"][row], s["exp_avg_sq"][row]
                rate = float(lr) * np.sqrt(1 - o.beta2**t) / (1 - o.beta1**t)
                return w - F32(rate) * m / (np.sqrt(v) + F32(o.eps))
            case OptimizerName.FTRL:
                # In float64, as the difference of two powers loses most of float32's digits.
                p, w64, g64 = -o.learning_rate_power, w.astype(float), g.astype(float)
                old = s["accumulator"][row].astype(float)
                a = old + g64**2
                z = s["linear"][row] + g64 + 2 * o.l2_shrinkage * w64 - (a**p - old**p) / lr * w64
                s["accumulator"][row], s["linear"][row] = a, z
                below = a**p / float(lr) + 2 * o.l2 + o.beta / float(lr)
                return ((np.clip(z, -o.l1, o.l1) - z) / below).astype(F32)
