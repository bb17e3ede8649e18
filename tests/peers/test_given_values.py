"""Gradients come from other libraries as they are, and results go to them without a copy."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from client.clients import ITEMS, WORDS
from client.fake_updates import UpdatedService, wire_values
from client.fakes import connect_server
from gatherd import Client
from gatherd.errors import InvalidArgument, NonfiniteValues
from gatherd_proto.v1 import tensor_pb2

NUMBERS = [[0.5, -2.0, 3.0], [1.5, 0.25, -8.0]]
FLOAT32, BFLOAT16 = tensor_pb2.DTYPE_FLOAT32, tensor_pb2.DTYPE_BFLOAT16


@pytest.fixture
def service() -> UpdatedService:
    return UpdatedService({"words": WORDS, "items": ITEMS.copy()}, {})


@pytest.fixture
def client(service: UpdatedService) -> Iterator[Client]:
    with connect_server(service) as url, Client(url) as client:
        yield client


@pytest.mark.parametrize(
    ("grads", "sent"),
    [
        (torch.tensor(NUMBERS, requires_grad=True), FLOAT32),
        (torch.tensor(NUMBERS, requires_grad=True) * 1, FLOAT32),
        (torch.tensor(NUMBERS, dtype=torch.bfloat16), BFLOAT16),
        (torch.tensor(NUMBERS, dtype=torch.bfloat16, requires_grad=True), BFLOAT16),
        (torch.tensor(NUMBERS, dtype=torch.bfloat16).T.contiguous().T, BFLOAT16),
        (torch.tensor(NUMBERS, dtype=torch.float64), FLOAT32),
        (torch.complex(torch.zeros(2, 3), -torch.tensor(NUMBERS)).conj().imag, FLOAT32),
        ([torch.tensor(row, requires_grad=True) for row in NUMBERS], FLOAT32),
        ([torch.tensor(row, dtype=torch.bfloat16) for row in NUMBERS], FLOAT32),
        (jnp.array(NUMBERS), FLOAT32),
        (jnp.array(NUMBERS, jnp.bfloat16), BFLOAT16),
        (np.array(NUMBERS, ml_dtypes.bfloat16), BFLOAT16),
        (np.array(NUMBERS, ml_dtypes.float8_e5m2), FLOAT32),
        (pd.DataFrame(NUMBERS), FLOAT32),
        (pl.DataFrame(NUMBERS, orient="row"), FLOAT32),
        (pl.Series(NUMBERS, dtype=pl.Array(pl.Float32, 3)), FLOAT32),
        (pa.array(NUMBERS, pa.list_(pa.float32(), 3)), FLOAT32),
    ],
    ids=str,
)
def test_gradients_of_every_library(
    client: Client, service: UpdatedService, grads: Any, sent: int
) -> None:
    for ids in ([3, 4], torch.tensor([3, 4]), jnp.array([3, 4]), pl.Series([3, 4])):
        client.apply_gradients("items", ids, grads)
        (update,) = service.pushes[-1].updates
        assert update.values.dtype == sent
        np.testing.assert_array_equal(wire_values(update.values), NUMBERS)


def test_what_is_wrong_in_them_is_named_as_ever(client: Client) -> None:
    bad = torch.tensor([[1.0, 2.0, torch.nan]], requires_grad=True)
    for grads in (bad, bad.bfloat16()):
        with pytest.raises(NonfiniteValues, match=r"grads\[0\]\[2\]=nan"):
            client.apply_gradients("items", [1], grads)
    with pytest.raises(InvalidArgument, match=r"grads\[0\]\[1\] is null: fill nulls in"):
        client.apply_gradients("items", [1], pl.Series([[1.0, None, 3.0]]))
    with pytest.raises(InvalidArgument, match="grads can't be made an array"):
        client.apply_gradients("items", [1], torch.empty((1, 3), device="meta"))


def test_results_go_to_other_libraries_without_a_copy(client: Client) -> None:
    vectors = client.lookup("words", [1, 2])
    tensor = torch.from_dlpack(vectors)
    np.testing.assert_array_equal(tensor.numpy(), WORDS[[1, 2]])
    assert tensor.data_ptr() == vectors.ctypes.data
    np.testing.assert_array_equal(np.asarray(jnp.from_dlpack(vectors)), WORDS[[1, 2]])


def test_bfloat16_results_go_to_torch_as_their_bits(client: Client) -> None:
    """The line that docs/python.md gives for it; DLPack has no bfloat16 in NumPy."""
    vectors = client.lookup("words", [1, 2], dtype=ml_dtypes.bfloat16)
    tensor = torch.from_dlpack(vectors.view(np.int16)).view(torch.bfloat16)
    assert tensor.data_ptr() == vectors.ctypes.data
    np.testing.assert_array_equal(tensor.float().numpy(), vectors.astype(np.float32))
    assert jnp.asarray(vectors).dtype == jnp.bfloat16
