"""Shared by the clients' tests: tables, and an AsyncClient that can be called like a Client."""

import asyncio
import contextvars
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from client.fakes import pool
from gatherd import AsyncClient

WORDS = np.random.default_rng(1).standard_normal((500, 8), np.float32)
ITEMS = np.random.default_rng(2).standard_normal((40, 3), np.float32)


class Awaited:
    """AsyncClient on a loop of its own, called as if it blocked."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self._client, name)(*args, **kwargs)

        return lambda *args, **kwargs: self._runner.run(
            call(*args, **kwargs), context=contextvars.copy_context()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.aclose()
        self._runner.close()


def word(row: int) -> str:
    return f"word{row}"


def bags_of(
    table: NDArray[np.float32], bags: list[list[int]], mode: str, weights: Any = None
) -> NDArray[np.float32]:
    out = np.zeros((len(bags), table.shape[1]), np.float32)
    for i, bag in enumerate(bags):
        each = np.ones(len(bag), np.float32)
        if weights is not None:
            each = np.asarray(weights[i], np.float32)
        if bag:
            out[i] = pool(table[bag], each, mode)
    return out
