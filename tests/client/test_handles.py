"""A table as an object: what a gensim user's fingers type, and what a notebook shows."""

import asyncio
import copy
import inspect
import pickle
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.clients import ITEMS, WORDS
from client.fake_updates import UpdatedService
from client.fakes import FakeService, connect_server
from gatherd import AsyncClient, Client, TableHandle
from gatherd.errors import ClientError, KeyNotFound, TableNotFound


@pytest.fixture
def url(service: FakeService) -> Any:
    with connect_server(service) as url:
        yield url


def test_a_handle_costs_no_request_until_something_is_asked(url: str, service: FakeService) -> None:
    with Client(url) as client:
        words = client["words"]
        assert repr(words) == f"TableHandle('words' of Client({url!r}))"
        assert words
        assert not service.calls
        assert (len(words), words.vector_size, words.dim, words.key_kind) == (500, 8, 8, "bytes")
        assert len(service.calls) == 1  # it is described once
        assert repr(words) == "TableHandle('words', 500 × 8 float32, bytes keys, version 7)"
        service.version = 8
        assert words.version == 7
        assert words.info().version == 8
        assert words.version == 8


def test_vectors_by_key_or_id(url: str) -> None:
    with Client(url) as client:
        words, items = client["words"], client.table("items")
        np.testing.assert_array_equal(words["word3"], WORDS[3])
        np.testing.assert_array_equal(words[["word3", "word4"]], WORDS[[3, 4]])
        np.testing.assert_array_equal(words[5], WORDS[5])
        np.testing.assert_array_equal(words[[[5], [6]]], WORDS[[[5], [6]]])
        # Integers are keys where the table's keys are integers.
        np.testing.assert_array_equal(items[993], ITEMS[1])
        np.testing.assert_array_equal(words.lookup(keys=["word3"]), WORDS[[3]])
        found, status = words.lookup([1, 9999], missing="zero", return_status=True)
        assert (found.shape, status.tolist()) == ((2, 8), [0, 1])
        bags = words.lookup_bags([[1, 2]], mode="mean")
        np.testing.assert_allclose(bags, WORDS[[1, 2]].mean(axis=0)[None], rtol=1e-6)
        assert words.keys_of([3]).tolist() == ["word3"]
        assert words.ids_of(["word3", "nope"], allow_missing=True).tolist() == [3, -1]
        with pytest.raises(KeyNotFound):
            words["nope"]
        with pytest.raises(TableNotFound):
            client["nope"].lookup([1])


def test_in_asks_whether_a_key_has_a_row(url: str) -> None:
    with Client(url) as client:
        assert "word3" in client.table("words")
        assert "nope" not in client["words"]
        assert 993 in client["items"]
        assert 994 not in client["items"]


def test_a_table_is_not_iterated_by_mistake(url: str, service: FakeService) -> None:
    with Client(url) as client:
        with pytest.raises(TypeError, match=r"keys\(prefix=…, limit=…\) has keys"):
            list(client["words"])
        assert not service.calls


def test_the_awaited_handle_has_the_same_calls(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            words = client["words"]
            with pytest.raises(ClientError, match=r"await table.info\(\)"):
                _ = words.dim
            with pytest.raises(TypeError, match=r"await table.contains\(key\)"):
                _ = "word3" in words
            assert await words.contains("word3")
            assert not await words.contains("nope")
            np.testing.assert_array_equal(await words.lookup(keys=["word3"]), WORDS[[3]])
            assert (await words.info()).vector_size == len(WORDS[0])
            assert len(words) == len(WORDS)
            assert (await client.table("words")).vector_size == len(WORDS[0])

    asyncio.run(ask())


def test_updates_go_through_a_handle() -> None:
    service = UpdatedService({"items": ITEMS.copy()}, {"items": [b"a", b"b"]})
    with connect_server(service) as url, Client(url) as client:
        items = client["items"]
        items.assign([1], [[1.0, 2.0, 3.0]])
        items.scatter_add(keys=["b"], deltas=[[1.0, 1.0, 1.0]])
        assert items.apply_gradients([1], [[2.0, 0.0, 0.0]], lr=1.0).versions == {"items": 7}
        assert items[1].tolist() == [0.0, 3.0, 4.0]


def test_handles_equal_the_tables_description_and_can_be_pickled(url: str) -> None:
    with Client(url) as client:
        words, (info, *_) = client.table("words"), client.tables()
        assert words == info
        assert info == words
        assert hash(words) == hash(info)
        assert words != client.table("items")
        assert client["words"] != client["words"]  # nothing is known of them yet
        for again in (pickle.loads(pickle.dumps(words)), copy.copy(words), copy.deepcopy(words)):
            assert isinstance(again, TableHandle)
            assert again == words
            assert repr(again) == repr(words)
        np.testing.assert_array_equal(copy.copy(words).lookup([1]), WORDS[[1]])


def test_signatures_fit_on_a_screen_and_name_what_is_taken() -> None:
    for call in ("lookup", "lookup_bags", "apply_gradients", "assign", "scatter_add", "keys"):
        whole = inspect.signature(getattr(Client, call))
        own = inspect.signature(getattr(TableHandle, call))
        assert list(own.parameters) == [name for name in whole.parameters if name != "table"]
        assert len(str(whole)) < 800
    shown = str(inspect.signature(Client.lookup))
    assert "Ids" in shown
    assert "Literal['error', 'zero', 'default', 'init']" in shown
    assert "_SupportsArray" not in shown


class _Cells(HTMLParser):
    """The texts of a document, and its tags."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_notebook_shows_tables_without_secrets(url: str) -> None:
    with Client(url, token="s3cret", headers={"x-key": "s3cret"}) as client:
        client.lookup("words", [1])
        shown: list[Any] = [client, client["words"], client.table("words"), client.tables()]
        for one in [*shown, client["a<b>"]]:
            document = one._repr_html_()
            assert "s3cret" not in document + repr(one)
            assert _Cells(document).tags <= {"table", "caption", "tr", "th", "td"}


def test_what_is_shown_is_escaped_and_bounded(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    many = {f"table{number}": ITEMS for number in range(200)}
    service = UpdatedService(many, {})
    with connect_server(service) as url, Client(url) as client:
        document = client.tables()._repr_html_()
        assert len(document) < 20_000
        assert "… 150 more" in _Cells(document).texts
        result = client.scatter_add_many({name: ([1], [[1.0, 1.0, 1.0]]) for name in many})
        assert len(result._repr_html_()) < 2_000
    with Client(f"unix://{tmp_path}/{hostile}") as client:
        assert "<script>" not in client._repr_html_()
        assert f"unix://{tmp_path}/{hostile}" in _Cells(client._repr_html_()).texts
