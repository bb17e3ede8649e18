"""Update kernels beside `np.add.at` and torch's `index_add_`, alternating in one run, one thread.

Each of gatherd's figures is the whole of what a writer computes for a push: the images of its rows,
and their copy back to the table. Times are the thread's own, so that a turn that another process
had doesn't count; what it did to the caches and the memory's bandwidth does. torch is left out
where it isn't installed:
`taskset -c 1 python tests/bench/update_bench.py [ROWS]`. The marks: 16,384 ids × 128 float32 at
least 10 times `np.add.at` and 5 times `index_add_`; adagrad at most twice scatter_add; 8 ids under
25 µs.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType
from gatherd.store.memory import tune_allocator
from gatherd.store.stripes import COUNTER, STRIPES_MAX
from gatherd_server.storage.compiled_rows import store_rows
from gatherd_server.storage.mapped_rows import NO_COUNTERS
from gatherd_server.training import kernels
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.training.optimizer import Optimizer, OptimizerName

DIM, IDS, ROUNDS = 128, 16_384, 25
FEW = 8
COUNTERS = np.zeros(STRIPES_MAX, COUNTER)
MARKS = {"np.add.at": 10, "torch index_add_": 5, "adagrad": 2}


def microseconds(call: Callable[[], object]) -> float:
    """The CPU time that one call takes."""
    begin = time.thread_time()
    call()
    return (time.thread_time() - begin) * 1e6


def filled(shape: tuple[int, ...], dtype: Any, value: float) -> NDArray[Any]:
    """An array whose rows begin where cache lines do, as in a mapped file, its pages all there."""
    byte_count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(byte_count + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    array: NDArray[Any] = memory[begin : begin + byte_count].view(dtype).reshape(shape)
    array[:] = value
    return array


def trained(optimizer: Optimizer, weights: NDArray[Any], dtype: DType) -> TrainedRows:
    """A table of `weights` with the first state of its slots."""
    slots: dict[str, NDArray[Any]] = {}
    for slot in optimizer.slots:
        kind, shape = slot.array(*weights.shape)
        slots[slot.name] = filled(shape, kind, slot.initial)
    return TrainedRows(weights.view(np.uint8), dtype, weights.shape[1], slots)


def make_images(
    base: TrainedRows,
    optimizer: Optimizer,
    values: NDArray[np.float32],
    gradients: bool,
    ids: NDArray[np.int64],
) -> RowImages:
    """The images of one push."""
    images = RowImages(base, optimizer, ids.size, with_slots=gradients)
    if gradients:
        images.apply_gradients(ids, values)
    else:
        images.scatter_add(ids, values)
    return images


def push(
    base: TrainedRows,
    optimizer: Optimizer,
    values: NDArray[np.float32],
    gradients: bool,
    ids: NDArray[np.int64],
) -> None:
    """One push, from ids to changed rows."""
    images = make_images(base, optimizer, values, gradients, ids)
    for name, slot in images.slots.items():
        store_rows(base.slots[name].view(np.uint8), NO_COUNTERS, images.rows, slot.view(np.uint8))
    store_rows(base.weights, COUNTERS, images.rows, images.weights)
    for name, scalar in images.scalars.items():
        base.slots[name][:] = scalar


def torch_index_add(
    weights: NDArray[np.float32], values: NDArray[np.float32]
) -> Callable[[NDArray[np.int64]], object] | None:
    """torch's `index_add_` on the same memory, or None where torch isn't installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    tensor, deltas = torch.from_numpy(weights), torch.from_numpy(values)
    return lambda ids: tensor.index_add_(0, torch.from_numpy(ids), deltas)


def contestants(
    weights: NDArray[np.float32], values: NDArray[np.float32]
) -> dict[str, Callable[[NDArray[np.int64]], object]]:
    """Every way of an update, by its name; each takes the ids."""

    def numpy_add_at(ids: NDArray[np.int64]) -> None:
        np.add.at(weights, ids, values)

    calls: dict[str, Callable[[NDArray[np.int64]], object]] = {"np.add.at": numpy_add_at}
    theirs = torch_index_add(weights, values)
    if theirs is not None:
        calls["torch index_add_"] = theirs
    sgd = Optimizer.parse("sgd", {})
    for label, stored, dtype in (
        ("scatter_add", weights, DType.FLOAT32),
        ("scatter_add float16", filled(weights.shape, np.float16, 0), DType.FLOAT16),
        ("scatter_add bfloat16", filled(weights.shape, np.uint16, 0), DType.BFLOAT16),
    ):
        base = trained(sgd, stored, dtype)
        calls[label] = partial(push, base, sgd, values, False)
    for name in filter(lambda one: one.takes_gradients, OptimizerName):
        optimizer = Optimizer.parse(name.value, {})
        base = trained(optimizer, weights, DType.FLOAT32)
        calls[name.value] = partial(push, base, optimizer, values, True)
    return calls


def compare(row_count: int, zipf: bool) -> None:
    """Print everybody's medians for pushes of IDS ids."""
    rng = np.random.default_rng(0)
    weights = filled((row_count, DIM), np.float32, 0)
    weights[:] = rng.standard_normal(weights.shape, np.float32)
    values = (rng.standard_normal((IDS, DIM)) * 1e-3).astype(np.float32)
    calls = contestants(weights, values)
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            # Each its own: after another's push of the same ids their rows would be in the cache.
            ids = rng.zipf(1.05, IDS) % row_count if zipf else rng.integers(0, row_count, IDS)
            took[name].append(microseconds(partial(call, ids)))
    medians = {name: float(np.median(times[3:])) for name, times in took.items()}
    ours = medians["scatter_add"]
    print(f"{IDS} {'zipf' if zipf else 'uniform'} ids of {row_count} rows, dim {DIM}")
    for name, median in medians.items():
        print(f"  {name:22} {median / 1e3:7.2f} ms   {median / ours:5.2f} times scatter_add")
    print("marks:")
    for name, mark in MARKS.items():
        if name in medians:
            ratio = medians[name] / ours
            is_met = ratio <= mark if name == "adagrad" else ratio >= mark
            at = "at most" if name == "adagrad" else "at least"
            print(
                f"  {name} is {ratio:.2f} times scatter_add; mark: {at} {mark}; "
                f"{'met' if is_met else 'missed'}"
            )


def compare_few(row_count: int) -> None:
    """Print what the images alone of a push of FEW ids cost, each made anew."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((row_count, DIM), np.float32)
    values = np.full((FEW, DIM), 1e-3, np.float32)
    print(f"images of {FEW} ids, made anew for each push")
    for name in ("scatter_add", *(one.value for one in OptimizerName if one.takes_gradients)):
        gradients = name != "scatter_add"
        optimizer = Optimizer.parse(name if gradients else "sgd", {})
        base = trained(optimizer, weights, DType.FLOAT32)
        batches = list(rng.integers(0, row_count, (3000, FEW)))

        once = partial(make_images, base, optimizer, values, gradients)
        took = [microseconds(partial(once, ids)) for ids in batches]
        print(f"  {name:22} {float(np.median(took)):7.1f} µs")


def main() -> None:
    """Print every table."""
    row_count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    tune_allocator()
    kernels.warm()
    for zipf in (False, True):
        compare(row_count, zipf)
    compare_few(row_count)


if __name__ == "__main__":
    main()
