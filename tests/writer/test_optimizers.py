"""Images of a batch of pushes against the formulas in NumPy; tests/peers has torch and Keras."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument, NonfiniteValues
from gatherd.store.dtypes import DType
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.training.optimizer import Optimizer, OptimizerName
from gatherd_server.types import VALUE_OPS, UpdateOp
from writer.formulas import Oracle, stored, trained_rows, values_of

F32 = np.float32
DTYPES = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16]
# Half a unit in the last place, and float32's own differences, which may tip a rounding.
TOLERANCE = {DType.FLOAT32: 2e-5, DType.FLOAT16: 2e-3, DType.BFLOAT16: 1.6e-2}


@dataclass(frozen=True)
class Pushed:
    """One push."""

    op: UpdateOp
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    lr: float | None = None

    def to(self, table: RowImages | Oracle) -> None:
        if self.op is UpdateOp.SCATTER_ADD:
            table.scatter_add(self.ids, self.values)
        elif self.op is UpdateOp.ASSIGN:
            table.assign(self.ids, self.values)
        else:
            table.apply_gradients(self.ids, self.values, self.lr)


def images_of(base: TrainedRows, optimizer: Optimizer, pushes: Sequence[Pushed]) -> RowImages:
    with_slots = any(push.op is UpdateOp.APPLY_GRADIENTS for push in pushes)
    images = RowImages(base, optimizer, sum(push.ids.size for push in pushes), with_slots)
    for push in pushes:
        push.to(images)
    return images


def store(base: TrainedRows, images: RowImages) -> None:
    """What a writer does with images, once they are in the log."""
    base.weights[images.rows] = images.weights
    for name, slot in images.slots.items():
        base.slots[name][images.rows] = slot
    for name, scalar in images.scalars.items():
        base.slots[name][:] = scalar


def gradient(ids: Sequence[int], values: Any, lr: float | None = None) -> Pushed:
    return Pushed(UpdateOp.APPLY_GRADIENTS, np.array(ids, np.int64), np.array(values, F32), lr)


# A row's norm has no constraint, or one of Keras'.
NORMS: st.SearchStrategy[dict[str, float]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"max_norm": st.floats(0.1, 4)}),
    st.just({"unit_norm": 1.0}),
    st.fixed_dictionaries(
        {"max_norm": st.floats(0.5, 4)},
        optional={"min_norm": st.floats(0, 0.5), "norm_rate": st.floats(0.1, 1)},
    ),
)


@st.composite
def optimizers(draw: st.DrawFn, row_count: int) -> Optimizer:
    """Any optimizer with any of its options."""
    rate = st.floats(1e-3, 0.5)
    possible: dict[OptimizerName, dict[str, st.SearchStrategy[float]]] = {
        OptimizerName.SGD: {"momentum": st.floats(0, 0.95), "weight_decay": st.floats(0, 0.1)},
        OptimizerName.ADAGRAD: {"eps": st.floats(1e-10, 1), "initial_accumulator": st.floats(0, 1)},
        OptimizerName.ROWWISE_ADAGRAD: {
            "eps": st.floats(1e-8, 1),
            "initial_accumulator": st.floats(0, 1),
        },
        OptimizerName.ADAM: {
            "beta1": st.floats(0, 0.99),
            "beta2": st.floats(0, 0.999),
            "eps": st.floats(1e-6, 1),
        },
        OptimizerName.FTRL: {
            "l1": st.floats(0, 0.1),
            "l2": st.floats(0, 0.1),
            "l2_shrinkage": st.floats(0, 0.1),
            "beta": st.floats(0, 1),
            "initial_accumulator": st.floats(0.05, 1),
            "learning_rate_power": st.sampled_from([-0.5, -0.25, -1.0, 0.0]),
        },
    }
    shared: dict[str, st.SearchStrategy[float]] = {
        "clip_value": st.floats(0.05, 2),
        "clip_row_norm": st.floats(0.1, 4),
        "regularizer_l1": st.floats(0, 0.3),
        "regularizer_l2": st.floats(0, 0.3),
        "decoupled_weight_decay": st.floats(0, 0.3),
        "non_neg": st.just(1.0),
        "padding_id": st.integers(0, row_count - 1),
    }
    name = draw(st.sampled_from([name for name in OptimizerName if name.takes_gradients]))
    options = draw(st.fixed_dictionaries({"lr": rate}, optional=possible[name] | shared))
    return Optimizer.parse(name.value, options | draw(NORMS))


@dataclass(frozen=True)
class Case:
    """A table and the pushes of a batch."""

    rows: NDArray[np.float32]
    dtype: DType
    optimizer: Optimizer
    pushes: list[Pushed]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    row_count = draw(st.integers(1, 12))
    dim = draw(st.sampled_from([1, 2, 3, 7, 8, 16, 31, 64, 128, 130]))
    optimizer = draw(optimizers(row_count))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pushes = []
    for op in draw(st.lists(st.sampled_from(VALUE_OPS), min_size=1, max_size=4)):
        count = draw(st.integers(0, 20))
        lr = draw(st.none() | st.floats(1e-3, 0.5)) if op is UpdateOp.APPLY_GRADIENTS else None
        values = rng.standard_normal((count, dim)).astype(F32)
        pushes.append(Pushed(op, rng.integers(0, row_count, count), values, lr))
    rows = rng.standard_normal((row_count, dim)).astype(F32)
    return Case(rows, draw(st.sampled_from(DTYPES)), optimizer, pushes)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_batch_makes_of_the_rows_what_the_formulas_do(case: Case) -> None:
    base = trained_rows(case.rows, case.dtype, case.optimizer)
    before = base.weights.copy(), {name: slot.copy() for name, slot in base.slots.items()}
    values_before = [(push.ids.copy(), push.values.copy()) for push in case.pushes]
    oracle = Oracle(case.optimizer, case.dtype, case.rows)
    for push in case.pushes:
        push.to(oracle)

    images = images_of(base, case.optimizer, case.pushes)

    np.testing.assert_array_equal(base.weights, before[0])
    for name, slot in base.slots.items():
        np.testing.assert_array_equal(slot, before[1][name])
    for push, (ids, values) in zip(case.pushes, values_before, strict=True):
        np.testing.assert_array_equal(push.ids, ids)
        np.testing.assert_array_equal(push.values, values)
    touched = np.unique(np.concatenate([push.ids for push in case.pushes]))
    np.testing.assert_array_equal(
        np.sort(images.rows), touched[touched != case.optimizer.padding_id]
    )
    store(base, images)
    near = TOLERANCE[case.dtype]
    got = values_of(base.weights, case.dtype)
    np.testing.assert_allclose(got, oracle.rows, rtol=near, atol=near)
    for name, slot in oracle.slots.items():
        # ftrl's linear is a difference: its error is that of what it is a difference of.
        large = max(1, np.abs(slot).max(initial=0) / 40)
        np.testing.assert_allclose(base.slots[name], slot, rtol=near, atol=2 * near * large)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_pushes_in_one_batch_are_the_same_pushes_one_by_one(case: Case) -> None:
    together = trained_rows(case.rows, case.dtype, case.optimizer)
    one_by_one = trained_rows(case.rows, case.dtype, case.optimizer)
    store(together, images_of(together, case.optimizer, case.pushes))
    for push in case.pushes:
        store(one_by_one, images_of(one_by_one, case.optimizer, [push]))
    np.testing.assert_array_equal(together.weights, one_by_one.weights)
    for name, slot in together.slots.items():
        np.testing.assert_array_equal(slot, one_by_one.slots[name])


@pytest.mark.parametrize("dim", [1, 5, 16, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_add_is_numpys_with_one_rounding_a_push(dtype: DType, dim: int) -> None:
    rng = np.random.default_rng(dim)
    sgd = Optimizer.parse("sgd", {})
    rows = rng.standard_normal((300, dim)).astype(F32)
    base, oracle = trained_rows(rows, dtype, sgd), Oracle(sgd, dtype, rows)
    pushes = []
    for _ in range(3):
        ids = rng.integers(0, 300, 1000)
        deltas = rng.standard_normal((1000, dim)).astype(F32)
        pushes.append(Pushed(UpdateOp.SCATTER_ADD, ids, deltas))
        oracle.scatter_add(ids, deltas)
    store(base, images_of(base, sgd, pushes))
    np.testing.assert_array_equal(values_of(base.weights, dtype), oracle.rows)


def test_many_ones_to_one_row_all_count() -> None:
    sgd = Optimizer.parse("sgd", {})
    base = trained_rows(np.zeros((4, 3), F32), DType.FLOAT32, sgd)
    one = Pushed(UpdateOp.SCATTER_ADD, np.array([2]), np.ones((1, 3), F32))
    images = images_of(base, sgd, [one] * 32)
    assert images.rows.tolist() == [2]
    np.testing.assert_array_equal(values_of(images.weights, DType.FLOAT32), np.full((1, 3), 32))


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_halves_are_rounded_to_nearest_ties_to_even(dtype: DType) -> None:
    sgd = Optimizer.parse("sgd", {})
    rng = np.random.default_rng(0)
    largest = 65_504 if dtype is DType.FLOAT16 else 3.3895e38
    bits = rng.integers(0, 2**32, (4000, 64), np.uint32)
    bits[:1000] &= 0xFFFF0000  # every bfloat16
    bits[1000:2000] = (bits[1000:2000] & 0xFFFFE000) | 0x1000  # ties of float16
    bits[2000:3000] = (bits[2000:3000] & 0xFFFF0000) | 0x8000  # ties of bfloat16
    bits[3000:] = (bits[3000:] & 0x87FFFFFF) | (rng.integers(96, 124, (1000, 1)) << 23).astype("u4")
    values = bits.view(F32)
    values = np.where(np.abs(values) <= largest, values, F32(1)).astype(F32)
    base = trained_rows(np.zeros((4000, 64), F32), dtype, sgd)
    images = images_of(base, sgd, [Pushed(UpdateOp.ASSIGN, np.arange(4000), values)])
    np.testing.assert_array_equal(images.weights.view(dtype.storage), stored(values, dtype))


def test_a_padding_row_never_changes_and_its_values_are_ignored() -> None:
    optimizer = Optimizer.parse("adam", {"padding_id": 1})
    base = trained_rows(np.ones((3, 2), F32), DType.FLOAT32, optimizer)
    nan = np.array([[np.nan, 1], [1, 1]], F32)
    for op in VALUE_OPS:
        images = images_of(base, optimizer, [Pushed(op, np.array([1, 2]), nan)])
        assert images.rows.tolist() == [2]


def test_a_push_that_changes_no_row_is_no_step() -> None:
    optimizer = Optimizer.parse("adam", {"padding_id": 0})
    base = trained_rows(np.ones((3, 2), F32), DType.FLOAT32, optimizer)
    nothing = [gradient([0], [[1, 1]]), gradient([], np.empty((0, 2)))]
    images = images_of(base, optimizer, nothing)
    assert images.row_count == 0
    assert images.scalars == {}
    images = images_of(base, optimizer, [*nothing, gradient([1], [[1, 1]])])
    assert images.scalars["step"].tolist() == [1]


def test_a_push_may_bring_its_own_rate() -> None:
    sgd = Optimizer.parse("sgd", {"lr": 0.5})
    base = trained_rows(np.zeros((1, 2), F32), DType.FLOAT32, sgd)
    images = images_of(base, sgd, [gradient([0], [[1, 2]]), gradient([0], [[1, 2]], lr=0.25)])
    np.testing.assert_array_equal(values_of(images.weights, DType.FLOAT32), [[-0.75, -1.5]])


@pytest.mark.parametrize("lr", [-1.0, np.inf, np.nan, 1e60])
def test_a_rate_that_is_no_rate_is_refused(lr: float) -> None:
    sgd = Optimizer.parse("sgd", {})
    base = trained_rows(np.zeros((1, 2), F32), DType.FLOAT32, sgd)
    with pytest.raises(InvalidArgument, match="lr can't be"):
        images_of(base, sgd, [gradient([0], [[1, 2]], lr=lr)])


def test_without_gradients_a_batch_has_no_images_of_slots() -> None:
    adagrad = Optimizer.parse("adagrad", {})
    base = trained_rows(np.zeros((4, 2), F32), DType.FLOAT32, adagrad)
    added = Pushed(UpdateOp.SCATTER_ADD, np.array([3, 1, 3]), np.ones((3, 2), F32))
    assert images_of(base, adagrad, [added]).slots == {}
    images = images_of(base, adagrad, [added, gradient([0], [[1, 2]])])
    assert images.rows.tolist() == [3, 1, 0]
    np.testing.assert_array_equal(images.slots["sum"], [[0, 0], [0, 0], [1, 4]])


def test_images_can_be_written_without_a_copy() -> None:
    adam = Optimizer.parse("adam", {})
    base = trained_rows(np.zeros((9, 5), F32), DType.FLOAT16, adam)
    images = images_of(base, adam, [gradient([7, 2], np.ones((2, 5)))])
    arrays: list[NDArray[Any]] = [images.rows, images.weights]
    arrays += [*images.slots.values(), *images.scalars.values()]
    assert all(array.flags.c_contiguous for array in arrays)
    assert images.weights.shape == (2, 10)
    assert {name: slot.shape for name, slot in images.slots.items()} == {
        "exp_avg": (2, 5),
        "exp_avg_sq": (2, 5),
    }


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", VALUE_OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in OptimizerName if name.takes_gradients])
def test_nan_and_infinity_are_refused_by_row(
    name: OptimizerName, dtype: DType, op: UpdateOp, special: float
) -> None:
    for hiding in (
        {},
        {"clip_value": 1.0},
        {"clip_row_norm": 1.0},
        {"max_norm": 1.0},
        {"non_neg": 1},
        {"unit_norm": 1},
        {"max_norm": 1.0, "min_norm": 1.0},
        {"regularizer_l1": 1.0, "clip_value": 1.0},
    ):
        optimizer = Optimizer.parse(name.value, hiding)
        base = trained_rows(np.ones((10, 20), F32), dtype, optimizer)
        values = np.ones((4, 20), F32)
        values[2, 17] = special
        with pytest.raises(NonfiniteValues, match=r"in row 7;") as error:
            images_of(base, optimizer, [Pushed(op, np.array([4, 5, 7, 5]), values)])
        assert error.value.metadata == {"rows": "7", "count": "1"}


@pytest.mark.parametrize("op", VALUE_OPS)
def test_five_rows_are_named_and_the_others_counted(op: UpdateOp) -> None:
    sgd = Optimizer.parse("sgd", {})
    base = trained_rows(np.ones((10, 2), F32), DType.FLOAT32, sgd)
    push = Pushed(op, np.arange(9, 1, -1), np.full((8, 2), np.nan, F32))
    with pytest.raises(NonfiniteValues, match=r"in rows 9, 8, 7, 6, 5 and 3 more;"):
        images_of(base, sgd, [push])


@pytest.mark.parametrize(
    ("dtype", "largest", "too_large"),
    [
        (DType.FLOAT16, 65_519, 65_520),
        (DType.BFLOAT16, 3.3961e38, 3.3962e38),
    ],
)
@pytest.mark.parametrize("op", VALUE_OPS)
def test_what_a_half_cannot_hold_is_refused(
    op: UpdateOp, dtype: DType, largest: float, too_large: float
) -> None:
    sgd = Optimizer.parse("sgd", {"lr": 1})
    base = trained_rows(np.zeros((2, 3), F32), dtype, sgd)
    sign = -1 if op is UpdateOp.APPLY_GRADIENTS else 1
    images = images_of(base, sgd, [Pushed(op, np.array([1]), np.full((1, 3), largest * sign, F32))])
    assert np.isfinite(values_of(images.weights, dtype)).all()
    with pytest.raises(NonfiniteValues, match="row 1"):
        images_of(base, sgd, [Pushed(op, np.array([1]), np.full((1, 3), too_large * sign, F32))])


@pytest.mark.parametrize("name", ["adagrad", "rowwise-adagrad", "adam", "ftrl"])
def test_a_slot_that_overflows_is_refused_though_the_weights_would_not(name: str) -> None:
    optimizer = Optimizer.parse(name, {})
    base = trained_rows(np.zeros((2, 3), F32), DType.FLOAT32, optimizer)
    with pytest.raises(NonfiniteValues, match="row 1"):
        images_of(base, optimizer, [gradient([1], np.full((1, 3), 1e30))])


def test_a_large_gradient_is_clipped_before_it_overflows() -> None:
    optimizer = Optimizer.parse("adagrad", {"clip_row_norm": 2.0, "lr": 1})
    base = trained_rows(np.zeros((1, 4), F32), DType.FLOAT32, optimizer)
    images = images_of(base, optimizer, [gradient([0], np.full((1, 4), 1e30))])
    np.testing.assert_allclose(images.slots["sum"], np.ones((1, 4)), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"regularizer_l1": 0.5},
        {"regularizer_l2": 0.5},
        {"decoupled_weight_decay": 0.5},
        {"non_neg": 1},
        {"unit_norm": 1},
        {"max_norm": 5, "min_norm": 4},
    ],
)
def test_only_gradients_and_only_their_rows_are_regularized_and_constrained(
    options: dict[str, float],
) -> None:
    rows = np.array([[3, -4, 0], [0.5, -0.5, 0], [-1, -1, -1]], F32)
    sgd = Optimizer.parse("sgd", {"lr": 0.5, **options})
    base = trained_rows(rows, DType.FLOAT32, sgd)
    nothing = np.zeros((1, 3), F32)
    images = images_of(base, sgd, [gradient([1], nothing)])
    assert images.rows.tolist() == [1]
    assert (values_of(images.weights, DType.FLOAT32) != rows[1]).any()
    for op, kept in ((UpdateOp.SCATTER_ADD, rows[1:2]), (UpdateOp.ASSIGN, nothing)):
        images = images_of(base, sgd, [Pushed(op, np.array([1]), nothing)])
        np.testing.assert_array_equal(values_of(images.weights, DType.FLOAT32), kept)


def test_the_loss_of_the_regularizers_falls_as_its_derivative_says() -> None:
    """One small step of sgd with a gradient of 0 lowers l1 · Σ|w| + l2 · Σw² by lr · ‖∇‖²."""
    rng = np.random.default_rng(2)
    rows, lr, l1, l2 = rng.standard_normal((50, 16)).astype(F32), 1e-3, 0.3, 0.2
    given_options = {"lr": lr, "regularizer_l1": l1, "regularizer_l2": l2}
    sgd = Optimizer.parse("sgd", given_options)
    base = trained_rows(rows, DType.FLOAT32, sgd)
    store(base, images_of(base, sgd, [gradient(range(50), np.zeros((50, 16)))]))
    after = values_of(base.weights, DType.FLOAT32).astype(np.float64)

    def loss(w: NDArray[Any]) -> Any:
        return (l1 * np.abs(w) + l2 * w**2).sum(axis=1)

    wide = rows.astype(np.float64)
    expected = lr * ((l1 * np.sign(wide) + 2 * l2 * wide) ** 2).sum(axis=1)
    np.testing.assert_allclose(loss(wide) - loss(after), expected, rtol=0.01)


def test_a_row_that_a_constraint_makes_too_long_is_refused() -> None:
    options = {"lr": 0, "max_norm": 2e5, "min_norm": 1e5}
    sgd = Optimizer.parse("sgd", options)
    base = trained_rows(np.array([[1, 0], [0, 0]], F32), DType.FLOAT16, sgd)
    with pytest.raises(NonfiniteValues, match="row 0"):
        images_of(base, sgd, [gradient([0], np.zeros((1, 2)))])
    # A row of zeros has no direction to grow in.
    images = images_of(base, sgd, [gradient([1], np.zeros((1, 2)))])
    assert not images.weights.any()


def test_a_row_that_was_not_finite_is_mended_by_assign_alone() -> None:
    sgd = Optimizer.parse("sgd", {})
    base = trained_rows(np.full((1, 2), np.nan, F32), DType.FLOAT32, sgd)
    for op in (UpdateOp.SCATTER_ADD, UpdateOp.APPLY_GRADIENTS):
        with pytest.raises(NonfiniteValues):
            images_of(base, sgd, [Pushed(op, np.array([0]), np.ones((1, 2), F32))])
    mended = images_of(base, sgd, [Pushed(UpdateOp.ASSIGN, np.array([0]), np.ones((1, 2), F32))])
    np.testing.assert_array_equal(values_of(mended.weights, DType.FLOAT32), [[1, 1]])
