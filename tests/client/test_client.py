"""The clients against stand-in servers, over every wire."""

import asyncio
import inspect
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gatherd
from client.clients import ITEMS, WORDS, Awaited
from client.fakes import FakeService, connect_server
from gatherd import (
    AsyncClient,
    Client,
    ClientClosed,
    ClientError,
    DeadlineExceeded,
    IdOutOfRange,
    InvalidArgument,
    LimitExceeded,
    Overloaded,
    TableNotFound,
    Unavailable,
    VersionNotFound,
)
from support.error_classes import CLIENT_CLASSES


def test_a_lookup_keeps_the_shape_of_its_ids(make: Any, server: str) -> None:
    with make(server) as client:
        for ids in (3, [], [1, 2, 2], ((4,), (20,)), np.zeros((2, 0, 3), np.uint8)):
            found = client.lookup("words", ids)
            assert found.dtype == np.float32
            assert found.flags.writeable
            assert found.flags.aligned
            np.testing.assert_array_equal(found, WORDS[np.asarray(ids, np.intp)])
        for dtype in "bhilqBHILQ":
            np.testing.assert_array_equal(
                client.lookup("words", np.array([[7, 8]], dtype)), WORDS[[[7, 8]]]
            )


def test_strided_and_big_endian_ids_are_looked_up_as_numbers(make: Any, server: str) -> None:
    ids = np.arange(60, dtype=">i4").reshape(6, 10)[::2, ::-3]
    with make(server) as client:
        np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids.astype(int)])


def test_reply_dtypes(make: Any, server: str) -> None:
    ids = [1, 499, 0]
    low = (WORDS[ids].view(np.uint32) >> 16 << 16).view(np.float32)
    with make(server) as client:
        for half in ("float16", np.float16, np.dtype("f2")):
            found = client.lookup("words", ids, dtype=half)
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found, WORDS[ids].astype(np.float16))
        wide = client.lookup("words", ids, dtype="bfloat16")
        assert wide.dtype == np.float32
        np.testing.assert_array_equal(wide, low)
        narrow = client.lookup("words", ids, dtype=ml_dtypes.bfloat16)
        assert narrow.dtype == ml_dtypes.bfloat16
        assert narrow.flags.writeable
        np.testing.assert_array_equal(narrow.astype(np.float32), low)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("limits", [{}, {"ids_max": 3}])
def test_out_is_filled_and_returned(
    make: Any, server: str, service: FakeService, dtype: Any, limits: dict[str, int]
) -> None:
    service.limits = limits
    ids = np.arange(10).reshape(2, 5)
    with make(server) as client:
        expected = client.lookup("words", ids, dtype=dtype)
        out = np.full((2, 5, 8), 9, expected.dtype)
        assert client.lookup("words", ids, dtype=dtype, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_an_out_that_cannot_be_filled_is_refused_before_anything_is_sent(
    make: Any, server: str, service: FakeService
) -> None:
    read_only = np.empty((2, 8), np.float32)
    read_only.flags.writeable = False
    bad: list[Any] = [
        np.empty((2, 8), np.float64),
        np.empty((3, 8), np.float32),
        np.empty((2,), np.float32),
        np.empty((2, 8), ">f4"),
        np.empty((8, 2), np.float32).T,
        read_only,
        [[0.0] * 8] * 2,
    ]
    with make(server) as client:
        for out in bad:
            with pytest.raises(InvalidArgument, match="out"):
                client.lookup("words", [1, 2], out=out)
        assert not service.calls
        with pytest.raises(InvalidArgument, match="has dim 8"):
            client.lookup("words", [1, 2], out=np.empty((2, 9), np.float32))


def test_status_tells_missing_ids(make: Any, server: str, service: FakeService) -> None:
    ids = [[1, 999], [-1, 2]]
    with make(server) as client:
        for limits in ({}, {"ids_max": 1}):
            service.limits = limits
            vectors, status = client.lookup("words", ids, missing="zero", return_status=True)
            assert status.dtype == np.uint8
            assert status.flags.writeable
            np.testing.assert_array_equal(status, [[0, 1], [1, 0]])
            np.testing.assert_array_equal(vectors[0, 0], WORDS[1])
            assert not vectors[0, 1].any()
        vectors, status = client.lookup("words", [5], return_status=True)
        np.testing.assert_array_equal(status, [0])
        filled = client.lookup("words", [999], missing="default")
        np.testing.assert_allclose(filled[0], WORDS.mean(axis=0), rtol=1e-6)


def test_lookup_many_answers_by_table(make: Any, server: str, service: FakeService) -> None:
    with make(server) as client:
        assert client.lookup_many({}) == {}
        assert not service.calls
        found = client.lookup_many({"words": [[1], [2]], "items": 3})
        assert list(found) == ["words", "items"]
        np.testing.assert_array_equal(found["words"], WORDS[[[1], [2]]])
        np.testing.assert_array_equal(found["items"], ITEMS[3])
        assert [name for name, _ in service.calls] == ["LookupMany"]
        assert all(array.flags.aligned for array in found.values())
        both = client.lookup_many({"items": [1, 99]}, missing="zero", return_status=True)
        np.testing.assert_array_equal(both["items"][1], [0, 1])


LIMITS = [
    {"ids_max": 7},
    {"reply_bytes_max": 600},
    {"request_bytes_max": 200},
    {"ids_max": 1, "tables_max": 1},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_what_is_over_a_limit_is_sent_in_pieces_of_one_version(
    make: Any, server: str, service: FakeService, limits: dict[str, int]
) -> None:
    service.limits = limits
    ids = np.random.default_rng(3).integers(0, 500, (9, 7))
    with make(server) as client:
        np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])
        # The fake counts requests refused for the reply's size, too: those ask for any version.
        pinned = service.versions_asked.index(service.version)
        assert set(service.versions_asked[:pinned]) == {0}
        assert set(service.versions_asked[pinned:]) == {service.version}
        found = client.lookup_many({"items": [1, 2], "words": ids})
        np.testing.assert_array_equal(found["items"], ITEMS[[1, 2]])
        np.testing.assert_array_equal(found["words"], WORDS[ids])


def test_a_large_lookup_asks_for_the_limits_once(
    make: Any, server: str, service: FakeService
) -> None:
    service.limits = {"ids_max": 40_000}
    ids = np.arange(70_000) % 500
    with make(server) as client:
        for _ in range(2):
            np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])
    assert [name for name, _ in service.calls] == ["GetTable", *["Lookup"] * 4]


def test_a_row_that_is_over_the_limit_alone_is_an_error(
    make: Any, server: str, service: FakeService
) -> None:
    service.limits = {"reply_bytes_max": 40}
    with make(server) as client, pytest.raises(LimitExceeded, match="at most 40"):
        client.lookup("words", [1, 2, 3])


def test_a_bad_id_is_named_by_its_place_in_the_whole_lookup(
    make: Any, server: str, service: FakeService
) -> None:
    service.limits = {"ids_max": 4}
    ids = np.zeros((5, 3), int)
    ids[3, 1] = 1000
    with make(server) as client, pytest.raises(IdOutOfRange, match=r"ids\[3\]\[1\]=1000"):
        client.lookup("words", ids)


def test_a_version_that_is_dropped_between_pieces_starts_the_lookup_again(
    make: Any, server: str, service: FakeService
) -> None:
    service.limits = {"ids_max": 2}

    def publish(method: str) -> None:
        if len(service.versions_asked) == 2 and service.version == 7:
            service.version = 8
            service.failures = [VersionNotFound("version 7 is gone")]

    service.before = publish
    # VersionNotFound travels as any error with its reason does.
    with make(server) as client:
        np.testing.assert_array_equal(client.lookup("words", range(6)), WORDS[:6])
    assert service.versions_asked == [0, 7, 0, 8, 8]


def test_errors_are_of_one_tree(make: Any, server: str) -> None:
    with make(server) as client:
        with pytest.raises(TableNotFound, match="no table 'nope'") as caught:
            client.lookup("nope", [1])
        assert caught.value.metadata == {"table": "nope"}
        with pytest.raises(TableNotFound):
            client.lookup("nope", [])
        with pytest.raises(TableNotFound):
            client.table("nope")
        with pytest.raises(IndexError):
            client.lookup("words", [-1])
        for ids in ([1.0], [True], "x", [[1], [2, 3]], None, np.array(["a"])):
            with pytest.raises(InvalidArgument):
                client.lookup("words", ids)
        with pytest.raises(InvalidArgument, match="float64"):
            client.lookup("words", [1], dtype="float64")
        with pytest.raises(InvalidArgument, match="missing policy"):
            client.lookup("words", [1], missing="skip")
        for timeout in (0, -1, "1", True, float("nan"), float("inf")):
            with pytest.raises(InvalidArgument, match="timeout"):
                client.lookup("words", [1], timeout=timeout)
        with pytest.raises(InvalidArgument, match="UTF-8"):
            client.lookup("\ud800", [1])
        with pytest.raises(InvalidArgument, match="str"):
            client.lookup(7, [1])


def test_tables_are_described(make: Any, server: str) -> None:
    with make(server) as client:
        words = gatherd.TableInfo(
            "words", 500, 8, "float32", 7, False, "", "bytes", 16_000, 4_000, 4_096
        )
        assert client.table("words") == words
        assert client.tables()[0] == words


def test_a_busy_server_is_asked_again(make: Any, server: str, service: FakeService) -> None:
    service.failures = [Overloaded("full", retry_after_seconds=0.01), Unavailable("starting")]
    with make(server) as client:
        np.testing.assert_array_equal(client.lookup("words", [4]), WORDS[[4]])
    assert len(service.calls) == 3


def test_retries_are_bounded_by_their_number_and_by_the_deadline(
    make: Any, server: str, service: FakeService
) -> None:
    service.failures = [Overloaded("full") for _ in range(9)]
    with make(server, retries=1) as client:
        with pytest.raises(Overloaded, match="full"):
            client.lookup("words", [4])
        assert len(service.calls) == 2
        service.failures = [Overloaded("full", retry_after_seconds=60)]
        with pytest.raises(Overloaded) as caught:
            client.lookup("words", [4], timeout=5)
        assert caught.value.retry_after_seconds == 60
        assert len(service.calls) == 3


def test_a_call_ends_at_its_deadline(make: Any, server: str, service: FakeService) -> None:
    released = threading.Event()
    service.before = lambda method: (released.wait(10), None)[1]
    try:
        with make(server) as client, pytest.raises(DeadlineExceeded, match=r"timeout of 0\.1 sec"):
            client.lookup("words", [1], timeout=0.1)
    finally:
        released.set()


def test_nobody_listening_is_unavailable(make: Any, tmp_path: Path) -> None:
    with connect_server(FakeService({})) as url:
        pass
    for gone in (url, url.replace("http", "grpc"), f"unix://{tmp_path}/none.sock"):
        with make(gone, retries=0) as client, pytest.raises(Unavailable):
            client.lookup("words", [1])


def test_a_closed_client_says_so(make: Any, server: str) -> None:
    with make(server) as client:
        client.lookup("words", [1])
    client = Client(server)
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        client.lookup("words", [1])


def test_many_threads_share_a_client(server: str) -> None:
    failures: list[BaseException] = []

    def work(seed: int, client: Client) -> None:
        try:
            rng = np.random.default_rng(seed)
            for _ in range(30):
                ids = rng.integers(0, 500, rng.integers(0, 50))
                np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])
        except BaseException as error:  # noqa: BLE001 - given to the test's thread
            failures.append(error)

    with Client(server) as client:
        threads = [threading.Thread(target=work, args=(seed, client)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_many_tasks_share_an_async_client(server: str) -> None:
    async def main() -> None:
        async with AsyncClient(server) as client:
            found = await asyncio.gather(*(client.lookup("words", [n, n]) for n in range(60)))
        for n, vectors in enumerate(found):
            np.testing.assert_array_equal(vectors, WORDS[[n, n]])

    asyncio.run(main())


def test_a_cancelled_call_leaves_the_client_usable(server: str, service: FakeService) -> None:
    released = threading.Event()
    arrived = threading.Event()

    def hold(method: str) -> None:
        arrived.set()
        released.wait(10)

    async def main() -> None:
        async with AsyncClient(server) as client:
            await client.lookup("words", [0])
            service.before = hold
            task = asyncio.create_task(client.lookup("words", [1]))
            await asyncio.to_thread(arrived.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            service.before = lambda method: None
            released.set()
            np.testing.assert_array_equal(await client.lookup("words", [2]), WORDS[[2]])

    asyncio.run(main())


def test_an_async_client_stays_on_its_loop(server: str) -> None:
    with Awaited(server) as client:
        client.lookup("words", [1])
        bound = client.__dict__["_client"]
        with pytest.raises(ClientError, match="another event loop"):
            asyncio.run(bound.lookup("words", [1]))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host", "host:8000", "", "http://", "http://h:99999", "http://h:0", "http://u:p@h",
        "http://h/?q=1", "grpc://h/path", "unix://run/x", "unix:", "local:", "http://h\r\nX: y", 7,
    ],
)  # fmt: skip
def test_a_url_that_names_nothing_is_refused(url: Any) -> None:
    for cls in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match=r"http://host:8000.*local:/data"):
            cls(url)


def test_the_clients_have_the_same_methods_and_parameters() -> None:
    def surface(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    blocking, awaited = surface(Client), surface(AsyncClient)
    awaited["close"] = awaited.pop("aclose")
    # An event loop waits for many things, so it can't busy-poll for one of them.
    blocking["__init__"].remove("busy_poll_us")
    assert blocking == awaited


def test_everything_exported_is_there_and_every_error_is_exported() -> None:
    for name in gatherd.__all__:
        assert hasattr(gatherd, name)
    assert {cls.__name__ for cls in CLIENT_CLASSES} <= set(gatherd.__all__)
