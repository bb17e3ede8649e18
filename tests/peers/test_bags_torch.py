"""torch's `embedding_bag` as the judge of bags, on random inputs, wherever it has the mode."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gatherd.store.bags import SKIP, pool
from gatherd.store.query import Pooling

ROW_COUNT = 200
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
MODES = [Pooling.SUM, Pooling.MEAN, Pooling.MAX]


def random_bags(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids, and offsets of which some are equal: empty bags, also at the end."""
    ids = rng.integers(0, ROW_COUNT, rng.integers(0, 300))
    inner = rng.integers(0, ids.size + 1, rng.integers(0, 40))
    return ids, np.sort(np.concatenate([[0], inner])).astype(np.int64)


def ours(
    table: torch.Tensor,
    index: NDArray[np.int64],
    offsets: NDArray[np.int64],
    mode: Pooling,
    weights: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    bits = table.view(torch.uint16) if table.dtype is torch.bfloat16 else table
    out = np.empty((offsets.size, table.shape[1]), np.float32)
    filler = np.zeros(table.shape[1], np.float32)
    pool(bits.numpy(), index, offsets, weights, mode, filler, out)
    return out


def theirs(
    table: torch.Tensor,
    ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
    mode: Pooling,
    weights: NDArray[np.float32] | None = None,
    padding_id: int | None = None,
) -> NDArray[np.float32]:
    """torch's answer over the same values as float32, since it adds halves up as halves."""
    answer: NDArray[np.float32] = torch.nn.functional.embedding_bag(
        torch.from_numpy(ids),
        table.to(torch.float32),
        torch.from_numpy(offsets),
        mode=mode.value,
        per_sample_weights=None if weights is None else torch.from_numpy(weights),
        padding_idx=padding_id,
    ).numpy()
    return answer


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dim", [1, 7, 64, 128])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("mode", MODES)
def test_bags_are_torchs(mode: Pooling, dtype: str, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(rng.normal(size=(ROW_COUNT, dim))).to(DTYPES[dtype])
    ids, offsets = random_bags(rng)
    expected = theirs(table, ids, offsets, mode)
    np.testing.assert_allclose(ours(table, ids, offsets, mode), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_weighted_sums_are_torchs(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(rng.normal(size=(ROW_COUNT, 33))).to(DTYPES[dtype])
    ids, offsets = random_bags(rng)
    weights = rng.normal(size=ids.size).astype(np.float32)
    expected = theirs(table, ids, offsets, Pooling.SUM, weights)
    got = ours(table, ids, offsets, Pooling.SUM, weights)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("mode", MODES)
def test_a_padding_id_is_torchs(mode: Pooling, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(rng.normal(size=(ROW_COUNT, 16)).astype(np.float32))
    ids, offsets = random_bags(rng)
    ids %= 8
    index = np.where(ids == 3, SKIP, ids)
    expected = theirs(table, ids, offsets, mode, padding_id=3)
    np.testing.assert_allclose(ours(table, index, offsets, mode), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", MODES)
def test_nan_and_infinity_go_where_torch_lets_them(mode: Pooling, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(ROW_COUNT, 24)).astype(np.float32)
    for special in (np.nan, np.inf, -np.inf):
        values[rng.random(values.shape) < 0.05] = special
    table = torch.from_numpy(values)
    ids, offsets = random_bags(rng)
    expected = theirs(table, ids, offsets, mode)
    np.testing.assert_allclose(ours(table, ids, offsets, mode), expected, rtol=1e-5, atol=1e-5)


def test_torch_takes_no_weights_with_max_either() -> None:
    table = torch.zeros((3, 2))
    with pytest.raises((ValueError, NotImplementedError), match="per_sample_weights"):
        theirs(table, np.zeros(1, np.int64), np.zeros(1, np.int64), Pooling.MAX, np.ones(1, "f4"))
