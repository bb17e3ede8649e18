"""How a table is trained: the optimizers, their options, and the slots of state that each keeps.

A slot is slot_<name>.npy in a version's folder: float32 (rows, dim) when every element has a value,
float32 (rows, 1) when every row has one, and int64 (1,) for a count of the whole table. A manifest
has every option of its table's optimizer, with its value:

    "optimizer": {"name", "lr", …}

A table that takes updates but no gradients has {"name": "none"}; one that takes none at all, null.
Names, defaults and first values are those of torch.optim (SGD, Adagrad, SparseAdam), of Keras'
Ftrl, and of FBGEMM's row-wise Adagrad; docs/optimizers.md has the formulas. images.py computes the
rows, and storage/slots.py writes the first state.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

import numpy as np

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.format import npy_header
from gatherd_server.types import OptimizerSpec

LR_DEFAULT = 0.01


class SlotShape(Enum):
    """The unit that has its own value in a slot: an element, a row or the table."""

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
    """How a table can be trained; by NONE with scatter_add and assign alone."""

    NONE = "none"
    SGD = "sgd"
    ADAGRAD = "adagrad"
    ROWWISE_ADAGRAD = "rowwise-adagrad"
    ADAM = "adam"
    FTRL = "ftrl"

    @property
    def takes_gradients(self) -> bool:
        """Whether it can take a step."""
        return self is not OptimizerName.NONE


class _Bounds(Enum):
    """The values that an option allows, all finite in float32; the enum's value is for messages."""

    POSITIVE = "larger than 0"
    NOT_NEGATIVE = "0 or larger"
    NOT_POSITIVE = "0 or smaller"
    FRACTION = "0 or larger, and smaller than 1"
    RATE = "larger than 0, and at most 1"
    FLAG = "1, or 0 for off"
    ROW = "a row's id: an integer, 0 or larger"

    def holds(self, value: float) -> bool:
        """Whether `value` is within the bounds, also once it is rounded to float32."""
        if self is _Bounds.ROW:
            return 0 <= value < 2**53 and value == math.floor(value)
        with np.errstate(over="ignore"):
            single = float(np.float32(value))
        if not math.isfinite(single):
            return False
        return {
            _Bounds.POSITIVE: single > 0,
            _Bounds.NOT_NEGATIVE: value >= 0,
            _Bounds.NOT_POSITIVE: value <= 0,
            _Bounds.FRACTION: value >= 0 and single < 1,
            _Bounds.RATE: single > 0 and value <= 1,
            _Bounds.FLAG: value in (0, 1),
        }[self]


_BOUNDS = {
    "lr": _Bounds.NOT_NEGATIVE,
    "momentum": _Bounds.FRACTION,
    "weight_decay": _Bounds.NOT_NEGATIVE,
    "eps": _Bounds.POSITIVE,
    "initial_accumulator": _Bounds.NOT_NEGATIVE,
    "beta1": _Bounds.FRACTION,
    "beta2": _Bounds.FRACTION,
    "l1": _Bounds.NOT_NEGATIVE,
    "l2": _Bounds.NOT_NEGATIVE,
    "l2_shrinkage": _Bounds.NOT_NEGATIVE,
    "beta": _Bounds.NOT_NEGATIVE,
    "learning_rate_power": _Bounds.NOT_POSITIVE,
    "clip_value": _Bounds.POSITIVE,
    "clip_row_norm": _Bounds.POSITIVE,
    "regularizer_l1": _Bounds.NOT_NEGATIVE,
    "regularizer_l2": _Bounds.NOT_NEGATIVE,
    "decoupled_weight_decay": _Bounds.NOT_NEGATIVE,
    "non_neg": _Bounds.FLAG,
    "unit_norm": _Bounds.FLAG,
    "max_norm": _Bounds.POSITIVE,
    "min_norm": _Bounds.NOT_NEGATIVE,
    "norm_rate": _Bounds.RATE,
    "padding_id": _Bounds.ROW,
}
# A rate of 0 would divide by 0; so would a first gradient of 0 from an accumulator of 0.
_FTRL_DIVIDES_BY = ("lr", "initial_accumulator")
# Options of every optimizer that are off unless they are given.
_UNSET = (
    *("regularizer_l1", "regularizer_l2", "decoupled_weight_decay", "clip_value", "clip_row_norm"),
    *("non_neg", "max_norm", "min_norm", "norm_rate", "unit_norm", "padding_id"),
)
# Those that 0 switches off.
_OFF_AT_ZERO = (
    *("regularizer_l1", "regularizer_l2", "decoupled_weight_decay", "non_neg", "unit_norm"),
)
_SHAPING = (*_OFF_AT_ZERO, "min_norm", "norm_rate")

_DEFAULTS: dict[OptimizerName, dict[str, float]] = {
    OptimizerName.NONE: {},
    OptimizerName.SGD: {"momentum": 0.0, "weight_decay": 0.0},
    OptimizerName.ADAGRAD: {"eps": 1e-10, "initial_accumulator": 0.0},
    OptimizerName.ROWWISE_ADAGRAD: {"eps": 1e-8, "initial_accumulator": 0.0},
    OptimizerName.ADAM: {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    # Keras starts the accumulator at 0.1, so that a first gradient of 0 doesn't divide by zero.
    OptimizerName.FTRL: {
        "l1": 0.0,
        "l2": 0.0,
        "l2_shrinkage": 0.0,
        "beta": 0.0,
        "initial_accumulator": 0.1,
        "learning_rate_power": -0.5,
    },
}


def option_names(name: OptimizerName) -> tuple[str, ...]:
    """The options that an optimizer has."""
    if not name.takes_gradients:
        return ()
    return ("lr", *_DEFAULTS[name], *_UNSET)


def _checked(owner: str, option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{owner}'s {option} is a number, not {value!r}")
    bounds = _BOUNDS[option]
    if owner == OptimizerName.FTRL.value and option in _FTRL_DIVIDES_BY:
        bounds = _Bounds.POSITIVE
    if not bounds.holds(value):
        raise InvalidArgument(f"{owner}'s {option} can't be {value:g}: it is {bounds.value}")
    return float(value)


def _check_norms(owner: str, values: Mapping[str, Any]) -> None:
    """InvalidArgument for constraints of a row's norm that don't go together."""
    others = [option for option in ("max_norm", "min_norm", "norm_rate") if option in values]
    if values["unit_norm"] and others:
        raise InvalidArgument(f"{owner}'s unit_norm and {others[0]} contradict; give one of them")
    if others and "max_norm" not in values:
        raise InvalidArgument(
            f"{owner}'s {others[0]} goes with max_norm, which is 1 in Keras' MinMaxNorm; give both"
        )
    if "min_norm" in values and values["min_norm"] > values["max_norm"]:
        raise InvalidArgument(
            f"{owner}'s min_norm {values['min_norm']:g} is above its max_norm "
            f"{values['max_norm']:g}"
        )


def check_lr(lr: float, optimizer: OptimizerName | None = None) -> float:
    """A push's own learning rate, checked; for a table with `optimizer` where that is known.

    InvalidArgument unless it is finite in float32 and not negative. `ftrl` divides by it, so there
    it must be positive.
    """
    return _checked("a push" if optimizer is None else optimizer.value, "lr", lr)


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer with its options; made by `parse`, which knows the options and defaults.

    Options that this optimizer doesn't have are at their neutral values and do nothing.
    """

    name: OptimizerName
    lr: float = LR_DEFAULT
    momentum: float = 0.0
    weight_decay: float = 0.0
    eps: float = 0.0
    initial_accumulator: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    l2_shrinkage: float = 0.0
    beta: float = 0.0
    learning_rate_power: float = 0.0
    clip_value: float | None = None
    clip_row_norm: float | None = None
    regularizer_l1: float | None = None
    regularizer_l2: float | None = None
    decoupled_weight_decay: float | None = None
    non_neg: float | None = None
    unit_norm: float | None = None
    max_norm: float | None = None
    min_norm: float | None = None
    norm_rate: float | None = None
    padding_id: int | None = None
    is_shaped: bool = False
    """Whether it has one of the options that few have: a regularizer, a decay or a constraint."""

    @classmethod
    def parse(cls, name: str, options: Mapping[str, float]) -> Self:
        """The optimizer called `name`; `options` override its defaults.

        InvalidArgument for an unknown name or option, naming the known ones, and for a value that
        is out of bounds.
        """
        try:
            found = OptimizerName(name)
        except ValueError:
            known = [member.value for member in OptimizerName]
            raise InvalidArgument(
                f"there is no optimizer {name!r}; there are {', '.join(known)}"
                f"{did_you_mean(near(name, known, 1))}"
            ) from None
        names = option_names(found)
        for option in options:
            if option not in names:
                raise InvalidArgument(
                    f"{name} has no option {option!r}; it has {', '.join(names) or 'none'}"
                    f"{did_you_mean(near(option, names, 1))}"
                )
        values: dict[str, Any] = {
            option: _checked(name, option, value)
            for option, value in (_DEFAULTS[found] | dict(options)).items()
        }
        for option in _OFF_AT_ZERO:
            values[option] = values.get(option) or None
        _check_norms(name, values)
        if "padding_id" in values:
            values["padding_id"] = int(values["padding_id"])
        shaping = any(values.get(option) is not None for option in _SHAPING)
        return cls(found, **values, is_shaped=shaping)

    @classmethod
    def for_new_table(cls, given: Self | None, dtype: DType, *, frozen: bool) -> Self | None:
        """What updates a new table: `given`, else NONE; None for a table that takes no updates.

        That is a frozen one, and one of float64. InvalidArgument for a frozen one with an
        optimizer.
        """
        if frozen and given is not None:
            raise InvalidArgument(
                f"a frozen table takes no updates, so {given.name.value} can't train it; leave one "
                "of the two out"
            )
        if given is not None or frozen or dtype is DType.FLOAT64:
            return given
        return cls(OptimizerName.NONE)

    @classmethod
    def from_spec(cls, spec: OptimizerSpec) -> Self:
        """The optimizer that a request specifies; raises as `parse` does."""
        return cls.parse(spec.name, spec.options)

    @classmethod
    def changed(cls, now: Self | None, spec: OptimizerSpec) -> Self:
        """The optimizer that takes the place of `now`; raises as `parse` does.

        A `spec` without a name changes options of `now`, and the others stay. With a name the
        others have their defaults, but for the slots' first value if the kind stays, because the
        state goes on.
        """
        options = dict(spec.options)
        if not spec.name:
            if now is None or not now.name.takes_gradients:
                raise InvalidArgument(
                    "the table has no optimizer whose options could be changed; name one, such as "
                    "adagrad"
                )
            return cls.parse(now.name.value, {**now.options(), **options})
        first = "initial_accumulator"
        if now is not None and now.name.value == spec.name and first in option_names(now.name):
            options.setdefault(first, now.initial_accumulator)
        return cls.parse(spec.name, options)

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The optimizer of a manifest; options that an older release didn't write have defaults.

        BadFile when `to_json` didn't make `document`.
        """
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise BadFile(f"the manifest's optimizer is damaged: {document!r}")
        options = {key: value for key, value in document.items() if key != "name"}
        try:
            return cls.parse(document["name"], options)
        except InvalidArgument as error:
            raise BadFile(f"the manifest's optimizer can't be used: {error}") from None

    def options(self) -> dict[str, float]:
        """Every option that the optimizer has and that isn't off, with its value."""
        named = ((option, getattr(self, option)) for option in option_names(self.name))
        return {option: value for option, value in named if value is not None}

    def to_json(self) -> dict[str, object]:
        """Its entry in a manifest."""
        return {"name": self.name.value, **self.options()}

    def check_table(self, dtype: DType, row_count: int | None = None) -> None:
        """InvalidArgument when a table of this type, and length if known, can't be trained."""
        if dtype is DType.FLOAT64:
            trainable = ", ".join(kind.value for kind in DType if kind is not DType.FLOAT64)
            raise InvalidArgument(
                "a float64 table can't be trained, as updates are computed in float32; "
                f"store it as one of {trainable} (--dtype)"
            )
        if row_count is not None and self.padding_id is not None and self.padding_id >= row_count:
            raise InvalidArgument(
                f"padding_id {self.padding_id} is out of range: the table has {row_count} rows"
            )

    def check_open_table(self, dtype: DType) -> None:
        """InvalidArgument when an open table of this type can't be trained."""
        self.check_table(dtype)
        if self.padding_id is not None:
            raise InvalidArgument(
                "an open table has no padding_id: its rows have no ids of their own, so leave the "
                "padding's key out of the push"
            )

    @property
    def slots(self) -> tuple[SlotSpec, ...]:
        """The slots that it keeps."""
        element = SlotShape.ELEMENT
        match self.name:
            case OptimizerName.NONE:
                return ()
            case OptimizerName.SGD:
                return (SlotSpec("momentum", element),) if self.momentum > 0 else ()
            case OptimizerName.ADAGRAD:
                return (SlotSpec("sum", element, self.initial_accumulator),)
            case OptimizerName.ROWWISE_ADAGRAD:
                return (SlotSpec("sum", SlotShape.ROW, self.initial_accumulator),)
            case OptimizerName.ADAM:
                moments = (SlotSpec("exp_avg", element), SlotSpec("exp_avg_sq", element))
                return (SlotSpec("step", SlotShape.TABLE), *moments)
            case OptimizerName.FTRL:
                accumulator = SlotSpec("accumulator", element, self.initial_accumulator)
                return (accumulator, SlotSpec("linear", element))
