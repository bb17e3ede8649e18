"""Arguments that are named, for mypy to check: `make check` does that; no test runs this file.

A misspelled one is an error, which an ignore expects: an ignore without an error is an error too
(warn_unused_ignores). Every name that is accepted at run time passes.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gatherd import AsyncClient, ChangeResult, Client, UpdateResult


def right(client: Client) -> None:
    rows: NDArray[Any] = client.lookup("t", [1], missing="zero", dtype="bfloat16")
    with_status: tuple[NDArray[Any], NDArray[np.uint8]] = client.lookup(
        "t", keys=["a"], missing="default", dtype=np.float16, return_status=True
    )
    client.lookup("t", [1], dtype=np.dtype("float32"))
    client.lookup("t", [1], dtype=ml_dtypes.bfloat16, out=rows, version=2, dedup=True, timeout=1.0)
    client.lookup("t", [1], dtype=rows)
    client.lookup_many({"t": [1]}, missing="error", version={"t": 1})["t"].sum()
    client.lookup_bags("t", [[1]], mode="sqrtn", missing="skip", padding_id=0)
    client.lookup_bags_many({"t": ([1], [0])}, mode="max", return_status=True)["t"][1].sum()
    pushed: UpdateResult = client.apply_gradients("t", [1], [[0.5]], lr=0.1)
    client.scatter_add("t", deltas=[[0.5]], keys=["a"], idempotency_key="x")
    client.create_table("t", 1, 2, dtype="float64", init="glorot", optimizer="rowwise-adagrad")
    client.create_table("t", 1, 2, dtype=float, optimizer={"name": "adam", "lr": 0.1})
    client.create_table("t", 1, 2, dtype="f4", init={"name": "normal", "stddev": 0.1})
    changed: ChangeResult = client.set_optimizer("t", "ftrl", lr=0.1)
    del with_status, pushed, changed


def misspelled(client: Client) -> None:
    client.lookup("t", [1], missing="eror")  # type: ignore[call-overload]
    client.lookup("t", [1], missing="skip")  # type: ignore[call-overload]
    client.lookup("t", [1], dtype="flaot32")  # type: ignore[call-overload]
    client.lookup("t", [1], dtype="float64")  # type: ignore[call-overload]
    client.lookup("t", [1], mising="zero")  # type: ignore[call-overload]
    client.lookup("t", [1], dtype="bfloat16", return_statsu=True)  # type: ignore[call-overload]
    client.lookup_many({"t": [1]}, missing="none")  # type: ignore[call-overload]
    client.lookup_bags("t", [[1]], mode="average")  # type: ignore[call-overload]
    client.lookup_bags("t", [[1]], missing="Skip")  # type: ignore[call-overload]
    client.lookup_bags_many({"t": [[1]]}, mode="median")  # type: ignore[call-overload]
    client.scatter_add("t", [1], [[0.5]], lr=0.1)  # type: ignore[call-overload]
    client.assign("t", keys=["a"], rows=[[0.5]], if_versoin=1)  # type: ignore[call-overload]
    client.create_table("t", 1, 2, init="xavier")  # type: ignore[arg-type]
    client.create_table("t", 1, 2, dtype="float8")  # type: ignore[arg-type]
    client.create_table("t", 1, 2, optimizer="adamw")  # type: ignore[arg-type]
    client.set_optimizer("t", "rmsprop")  # type: ignore[arg-type]


async def awaited(client: AsyncClient) -> None:
    rows: NDArray[Any] = await client.lookup("t", [1], missing="zero", dtype="float16")
    await client.set_optimizer("t", "sgd", lr=0.1)
    await client.lookup("t", [1], missing="eror", out=rows)  # type: ignore[call-overload]
    await client.lookup_bags("t", [[1]], mode="average")  # type: ignore[call-overload]
    await client.create_table("t", 1, 2, init="xavier")  # type: ignore[arg-type]
