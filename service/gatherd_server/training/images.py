"""A batch of pushes computed: a table's after-images, before anything is changed.

A push changes each of its rows in this order, in float32, and rounds the row once at the end:

    scatter_add      w += delta, for each of the row's deltas in their order
    assign           w = the last of the row's values
    apply_gradients  g = the sum of the row's gradients, in their order
                     regularizer_l1  g += v · sign(w)                       (Keras' L1: v · Σ|w|)
                     regularizer_l2  g += 2 · v · w                         (Keras' L2: v · Σw²)
                     clip_value      g = min(max(g, −v), v), element by element
                     clip_row_norm   g *= v / ‖g‖ where ‖g‖ > v                 (Keras clip_by_norm)
                     decoupled_weight_decay  w *= 1 − lr · v   (torch.optim.AdamW's, Keras' too)
                     the step, below
                     non_neg         w = max(w, 0)                                (Keras' NonNeg)
                     max_norm        w *= v / (‖w‖ + 1e-7) where ‖w‖ > v        (torch.renorm)
                     unit_norm       w *= 1 / (‖w‖ + 1e-7)                      (Keras' UnitNorm)
                     min_norm, norm_rate, beside max_norm: n = min(max(‖w‖, min_norm), max_norm)
                                     w *= (norm_rate · n + (1 − norm_rate) ‖w‖) / (‖w‖ + 1e-7)
                                                       where n ≠ ‖w‖          (Keras' MinMaxNorm)

    sgd              g += weight_decay · w;  w −= lr · g                       (torch.optim.SGD)
      momentum > 0   m = momentum · m + g;  w −= lr · m       (the same; no dampening, no Nesterov)
    adagrad          s += g²;  w −= lr · g / (√s + eps)                    (torch.optim.Adagrad)
    rowwise-adagrad  s += mean(g²);  w −= lr / (√s + eps) · g  (FBGEMM's exact_row_wise_adagrad)
    adam             t += 1;  m += (1 − beta1)(g − m);  v += (1 − beta2)(g² − v)
                     w −= lr · √(1 − beta2ᵗ) / (1 − beta1ᵗ) · m / (√v + eps)
                                                                       (torch.optim.SparseAdam)
    ftrl             a' = a + g²;  l += g + 2 · l2_shrinkage · w − (a'ᵖ − aᵖ) / lr · w;  a = a'
                     w = (min(max(l, −l1), l1) − l) / (aᵖ / lr + 2 · l2 + beta / lr)
                                        p = −learning_rate_power (keras.optimizers.Ftrl)

Only the rows of a gradient change: momentum, moments, regularizers, weight decay and constraints do
nothing to the other rows.
The step t of adam counts the pushes that changed a row, for the whole table.

writer/commit.py brings the images to the log and to the mapped rows.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import NonfiniteValues
from gatherd.store.dtypes import DType, convert
from gatherd_server.training import kernels
from gatherd_server.training.kernels import HYPERS, KINDS, LINKS, NAMED_MAX, Rule
from gatherd_server.training.optimizer import Optimizer, OptimizerName, SlotShape, check_lr

IDS_MAX = 2**30
LINE_BYTES = 64
FEW_BYTES = 4 << 10
_RULES = {
    OptimizerName.NONE: Rule.SGD,  # it never takes a step
    OptimizerName.SGD: Rule.SGD,
    OptimizerName.ADAGRAD: Rule.ADAGRAD,
    OptimizerName.ROWWISE_ADAGRAD: Rule.ROWWISE_ADAGRAD,
    OptimizerName.ADAM: Rule.ADAM,
    OptimizerName.FTRL: Rule.FTRL,
}
_NO_SLOT = np.empty((1, 0), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRows:
    """The mapped arrays of a live version.

    `weights` are the rows as bytes, (row_count, row_bytes). `slots`, by name, are float32 (rows,
    dim) or (rows, 1), or int64 (1,).
    """

    weights: NDArray[np.uint8]
    dtype: DType
    dim: int
    slots: dict[str, NDArray[Any]]


class RowImages:
    """The after-images of the rows of one version that a batch of pushes changes.

    A push builds on those before it. The mapped rows are only read, and must not change meanwhile.
    After an error the images are in no defined state: discard them.
    """

    def __init__(
        self, base: TrainedRows, optimizer: Optimizer, capacity: int, with_slots: bool = True
    ) -> None:
        """Make room for `capacity` ids, all pushes together.

        `with_slots` says whether any push will apply gradients. Without it there are no images of
        slots, and `apply_gradients` must not be called.
        """
        assert 0 <= capacity <= IDS_MAX
        row_count, row_bytes = base.weights.shape
        room = max(1, min(capacity, row_count))
        self.capacity = room
        """How many rows there can be images of."""
        self._base = base
        self._optimizer = optimizer
        self._kind = KINDS[base.dtype]
        self._rule = Rule.MOMENTUM if optimizer.momentum > 0 else _RULES[optimizer.name]
        self._padding_id = -1 if optimizer.padding_id is None else optimizer.padding_id
        self.row_count = 0
        self._table = np.zeros(1 << (2 * room - 1).bit_length(), np.int32)
        self._marks = np.empty(room, np.int32)
        self._rows = np.empty(room, np.int64)
        self._weights = _aligned(room, row_bytes)
        self._slots: dict[str, NDArray[np.float32]] = {}
        self._with_slots = with_slots
        self._step: int | None = None
        if with_slots:
            for slot in optimizer.slots:
                if slot.shape is SlotShape.TABLE:
                    self._step = int(base.slots[slot.name][0])
                else:
                    width = base.slots[slot.name].shape[1]
                    self._slots[slot.name] = _aligned(room, 4 * width).view(np.float32)
        self._first_step = self._step
        self.touched: NDArray[np.int32] = np.empty(0, np.int32)
        """The positions of the rows that the last push changed."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows that have images, (n,), each once."""
        return self._rows[: self.row_count]

    @property
    def weights(self) -> NDArray[np.uint8]:
        """Their new bytes, (n, row_bytes), contiguous."""
        return self._weights[: self.row_count]

    @property
    def slots(self) -> dict[str, NDArray[np.float32]]:
        """Their new slots, each (n, dim) or (n, 1) and contiguous; empty without slots."""
        return {name: images[: self.row_count] for name, images in self._slots.items()}

    @property
    def scalars(self) -> dict[str, NDArray[np.int64]]:
        """The slots of the whole table that have changed, each (1,)."""
        if self._step == self._first_step:
            return {}
        return {"step": np.array([self._step], np.int64)}

    def create(
        self, rows: NDArray[np.int64], vectors: NDArray[np.float32] | None
    ) -> NDArray[np.int32]:
        """Give `rows`, (n,), each once, the images of rows that begin; return their positions.

        `vectors`, float32 (n, dim), are their contents, None for those that a push replaces anyway.
        Images that a row had before, by another key, are forgotten.
        """
        self._place(rows)
        positions = self.touched
        if vectors is not None:
            stored = np.empty(vectors.shape, self._base.dtype.storage)
            convert(vectors, DType.FLOAT32, stored, self._base.dtype)
            self._weights[positions] = stored.view(np.uint8).reshape(rows.size, -1)
        for slot in self._optimizer.slots:
            if slot.name in self._slots:
                self._slots[slot.name][positions] = slot.initial
        return positions

    def scatter_add(self, ids: NDArray[np.int64], deltas: NDArray[np.float32]) -> None:
        """Add `deltas`, (n, dim), to the rows of `ids`, (n,), duplicates included.

        For all three operations `ids` are within the table, the values are C-contiguous, and those
        of the padding id are ignored. NonfiniteValues, naming rows, when NaN or infinity results.
        """
        known, links, touched = self._place(ids)
        nonfinite = np.empty(NAMED_MAX, np.int64)
        wrong = kernels.scatter_add(
            self._kind,
            self._base.weights,
            self._weights,
            self._rows,
            known,
            links,
            touched,
            deltas,
            nonfinite,
        )
        self._check(wrong, nonfinite)
        self._take_slots(known)

    def assign(self, ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Replace the rows of `ids` by `rows`, (n, dim); the last of a row's duplicates wins."""
        known, links, touched = self._place(ids)
        nonfinite = np.empty(NAMED_MAX, np.int64)
        wrong = kernels.assign(
            self._kind, self._weights, self._rows, links, touched, rows, nonfinite
        )
        self._check(wrong, nonfinite)
        self._take_slots(known)

    def apply_gradients(
        self, ids: NDArray[np.int64], grads: NDArray[np.float32], lr: float | None = None
    ) -> None:
        """Do one step of the optimizer with `grads`, (n, dim), by `lr` or the table's own rate.

        A push that changes no row, without ids or with the padding id only, is no step.
        InvalidArgument for a rate that `check_lr` refuses.
        """
        assert self._with_slots, "made without slots"
        assert self._optimizer.name.takes_gradients
        rate = self._optimizer.lr if lr is None else check_lr(lr, self._optimizer.name)
        known, links, touched = self._place(ids)
        if touched == 0:
            return
        if self._step is not None:
            self._step += 1
        hyper = np.zeros(HYPERS, np.float32)
        numbers = _numbers(self._optimizer, rate, self._step or 0)
        hyper[: len(numbers)] = numbers
        if self._optimizer.is_shaped:
            shaping = _shaping(self._optimizer, rate)
            hyper[HYPERS - len(shaping) :] = shaping
        nonfinite = np.empty(NAMED_MAX, np.int64)
        slots = [(self._base.slots[name], images) for name, images in self._slots.items()]
        wrong = kernels.apply_gradients(
            self._rule,
            self._kind,
            self._base.weights,
            self._weights,
            slots + [(_NO_SLOT, _NO_SLOT)] * (2 - len(slots)),
            self._rows,
            known,
            links,
            touched,
            grads,
            hyper,
            nonfinite,
        )
        self._check(wrong, nonfinite)

    def _place(self, ids: NDArray[np.int64]) -> tuple[int, NDArray[np.int32], int]:
        """Position each row of a push; return the first new position, links, and touched rows."""
        known = self.row_count
        links = np.empty((LINKS, ids.size), np.int32)
        touched, self.row_count = kernels.place(
            ids, self._padding_id, self._table, self._rows, known, self._marks, links
        )
        self.touched = links[kernels.TOUCHED, :touched]
        return known, links, touched

    def _take_slots(self, known: int) -> None:
        """Copy the mapped slots of the rows whose images are new."""
        new = self._rows[known : self.row_count]
        if new.size:
            for name, images in self._slots.items():
                base, out = self._base.slots[name], images[known : self.row_count]
                np.take(base, new, axis=0, out=out, mode="clip")

    def _check(self, wrong: int, nonfinite: NDArray[np.int64]) -> None:
        if wrong == 0:
            return
        named = ", ".join(map(str, nonfinite[:wrong].tolist()))
        more = f" and {wrong - NAMED_MAX} more" if wrong > NAMED_MAX else ""
        raise NonfiniteValues(
            f"the update would leave NaN or infinity (too large for {self._base.dtype.value}, or "
            f"in its values) in row{'s' if wrong > 1 else ''} {named}{more}; nothing was changed",
            {"rows": named, "count": str(wrong)},
        )


def _aligned(count: int, row_bytes: int) -> NDArray[np.uint8]:
    """Rows whose first byte begins a cache line, as in a mapped .npy file.

    Otherwise every vector that is copied between the two crosses lines, which is up to three times
    slower; a few rows are copied in less time than their address takes to ask for.
    """
    if count * row_bytes <= FEW_BYTES:
        return np.empty((count, row_bytes), np.uint8)
    memory = np.empty(count * row_bytes + LINE_BYTES, np.uint8)
    begin = -memory.ctypes.data % LINE_BYTES
    return memory[begin : begin + count * row_bytes].reshape(count, row_bytes)


def _numbers(optimizer: Optimizer, lr: float, step: int) -> tuple[float, ...]:
    """The step's numbers, in the order of compiled_optimizers.py."""
    o = optimizer
    own: tuple[float, ...]
    match o.name:
        case OptimizerName.NONE:
            own = ()
        case OptimizerName.SGD:
            own = (o.weight_decay, o.momentum)
        case OptimizerName.ADAGRAD | OptimizerName.ROWWISE_ADAGRAD:
            own = (o.eps,)
        case OptimizerName.ADAM:
            lr = lr * math.sqrt(1 - o.beta2**step) / (1 - o.beta1**step)
            own = (1 - o.beta1, 1 - o.beta2, o.eps)
        case OptimizerName.FTRL:
            own = (o.l1, 2 * o.l2 + o.beta / lr, 2 * o.l2_shrinkage, -o.learning_rate_power)
    cut = 0 if o.min_norm is not None or o.norm_rate is not None else o.max_norm or 0
    return (lr, o.clip_value or 0, o.clip_row_norm or 0, cut, *own)


def _shaping(o: Optimizer, lr: float) -> tuple[float, ...]:
    """Regularizers and constraints, which follow those numbers."""
    if o.unit_norm:
        norms = (1.0, 1.0, 1.0)
    elif o.min_norm is None and o.norm_rate is None:
        norms = (0.0, 0.0, 0.0)
    else:
        assert o.max_norm is not None, "checked by Optimizer.parse"
        norms = (o.min_norm or 0.0, o.max_norm, 1.0 if o.norm_rate is None else o.norm_rate)
    decay = lr * (o.decoupled_weight_decay or 0)
    l1, l2 = o.regularizer_l1 or 0, 2 * (o.regularizer_l2 or 0)
    return (l1, l2, decay, o.non_neg or 0, *norms)
