"""Pages of keys of a table with more of them than one chunk, compared with a Python list."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatherd import AsyncClient, Client
from gatherd.errors import InvalidArgument
from gatherd.store import query
from gatherd.store.catalog import open_table
from gatherd.store.key_pages import PAGE_BYTES_MAX, find_keys
from gatherd.store.query import KeyQuery
from gatherd.store.table import Table
from support.cli import invoke

COUNT = 150_000
LONG = 4_000


@pytest.fixture(scope="module")
def keys() -> list[str]:
    rng = random.Random(5)
    words = {"".join(rng.choices("abñ", k=rng.randint(11, 16))) for _ in range(COUNT + COUNT // 4)}
    return rng.sample(sorted(words), COUNT)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    place = ("--data-dir", folder / "data")
    for name, listed in (("words", keys), ("long", [f"{row:0>1000}" for row in range(LONG)])):
        np.save(folder / f"{name}.npy", np.zeros((len(listed), 1), np.float32))
        (folder / name).write_text("".join(f"{key}\n" for key in listed))
        invoke("import", name, folder / f"{name}.npy", "--keys", folder / name, *place)
    return folder / "data"


@pytest.fixture(scope="module")
def words(data_dir: Path) -> Table:
    return open_table(data_dir, "words", 1)


@pytest.fixture(scope="module")
def client(data_dir: Path) -> Iterator[Client]:
    with Client(f"local:{data_dir}") as client:
        yield client


def pages_of(table: Table, prefix: bytes, limit: int) -> Iterator[tuple[list[Any], list[int]]]:
    start: int | None = 0
    while start is not None:
        found = find_keys(table, KeyQuery(prefix, limit, start))
        assert found.ids.size <= limit
        assert found.next is None or found.next > start
        yield found.keys.tolist(), found.ids.tolist()
        start = found.next


def wanted(keys: list[str], prefix: str) -> list[tuple[str, int]]:
    return [(key, row) for row, key in enumerate(keys) if key.startswith(prefix)]


@pytest.mark.parametrize("prefix", ["", "a", "abñ", "ñbabba", "bbbbbbbbbbbbb", "c"])
@pytest.mark.parametrize("limit", [50_000, 65_536])
def test_all_pages_have_every_key_once(
    words: Table, keys: list[str], prefix: str, limit: int
) -> None:
    got = [
        (key.decode(), row)
        for found, ids in pages_of(words, prefix.encode(), limit)
        for key, row in zip(found, ids, strict=True)
    ]
    assert got == wanted(keys, prefix)


def test_a_prefix_may_end_inside_a_character(words: Table, keys: list[str]) -> None:
    half = "ñ".encode()[:1]
    found = find_keys(words, KeyQuery(half, 1000))
    expected = [row for row, key in enumerate(keys) if key.encode().startswith(half)][:1000]
    assert found.ids.tolist() == expected


def test_a_page_has_a_bound_in_bytes(data_dir: Path) -> None:
    table = open_table(data_dir, "long", 1)
    lengths = []
    for found, _ in pages_of(table, b"0", 65_536):
        lengths.append(len(found))
        assert sum(map(len, found)) <= PAGE_BYTES_MAX
    assert lengths == [PAGE_BYTES_MAX // 1000, LONG - PAGE_BYTES_MAX // 1000]


def test_a_page_ends_when_it_has_read_enough_and_the_client_goes_on(
    words: Table, keys: list[str], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "SCANNED_KEYS_MAX", 1_000)
    prefix = "ñbabba"
    found = list(pages_of(words, prefix.encode(), 100))
    assert len(found) == COUNT // 1_000
    assert [] in [ids for _, ids in found]
    assert list(client.iter_keys("words", prefix=prefix)) == wanted(keys, prefix)
    first = client.keys("words", prefix=prefix)
    assert next(iter(first)) == wanted(keys, prefix)[0]
    nothing = client.keys("words", prefix="c")
    assert (len(nothing), nothing.next) == (0, None)


def test_both_clients_go_through_all_pages(data_dir: Path, keys: list[str], client: Client) -> None:
    expected = wanted(keys, "a")

    async def awaited() -> list[tuple[Any, int]]:
        async with AsyncClient(f"local:{data_dir}") as other:
            return [pair async for pair in other.iter_keys("words", prefix=b"a")]

    assert list(client.iter_keys("words", prefix="a")) == expected
    assert asyncio.run(awaited()) == expected
    page = client.keys("words", limit=10**9)
    assert (len(page), page.next, page.version) == (65_536, 65_536, 1)
    assert page.ids.dtype == np.int64


@pytest.mark.parametrize(
    "wrong",
    [{"limit": 0}, {"limit": 1.5}, {"start": -1}, {"start": COUNT + 1}, {"prefix": 1}],
    ids=str,
)
def test_arguments_that_mean_no_page_are_refused(client: Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        client.keys("words", **wrong)
