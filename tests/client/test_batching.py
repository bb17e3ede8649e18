"""Concurrent small lookups of one client, merged into one request: each as if it were alone."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.clients import ITEMS, WORDS
from client.fakes import FakeService, connect_server
from gatherd import (
    AsyncClient,
    Batching,
    Client,
    ClientClosed,
    DeadlineExceeded,
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    Overloaded,
    TableNotFound,
    Unavailable,
)

Lookup = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of one lookup."""


class Held:
    """Holds the server's first request until it is let go, so that others come meanwhile."""

    def __init__(self, service: FakeService) -> None:
        self.came, self.may_go = threading.Event(), threading.Event()
        service.before = self._hold

    def _hold(self, _method: str) -> None:
        self.came.set()
        assert self.may_go.wait(10)


def lookup(*args: Any, **options: Any) -> Lookup:
    return args, options


class AsyncFace:
    """Many lookups at once through an AsyncClient."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options

    def all(self, held: Held, first: Lookup, others: list[Lookup]) -> list[Any]:
        """The results of `others`, made while `first` is under way; errors as results."""
        return asyncio.run(self._all(held, first, others))

    async def _all(self, held: Held, first: Lookup, others: list[Lookup]) -> list[Any]:
        async with AsyncClient(self._url, **self._options) as client:
            tasks = [asyncio.create_task(client.lookup(*first[0], **first[1]))]
            await asyncio.to_thread(held.came.wait, 10)
            tasks += [asyncio.create_task(client.lookup(*args, **own)) for args, own in others]
            await asyncio.sleep(0)  # every task has asked now
            held.may_go.set()
            return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


class ThreadFace:
    """Many lookups at once through a Client, each from a thread of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options

    def all(self, held: Held, first: Lookup, others: list[Lookup]) -> list[Any]:
        with (
            Client(self._url, **self._options) as client,
            ThreadPoolExecutor(len(others) + 1) as threads,
        ):
            futures: list[Future[Any]] = [threads.submit(client.lookup, *first[0], **first[1])]
            held.came.wait(10)
            started = threading.Barrier(len(others) + 1)

            def ask(args: Any, own: Any) -> Any:
                started.wait(10)
                return client.lookup(*args, **own)

            futures += [threads.submit(ask, args, own) for args, own in others]
            started.wait(10)
            time.sleep(0.05)  # most have asked by now; later ones are fine as well
            held.may_go.set()
            return [future.exception() or future.result() for future in futures[1:]]


FACES = [AsyncFace, ThreadFace]


@contextmanager
def faked() -> Iterator[tuple[str, FakeService]]:
    service = FakeService({"words": WORDS, "items": ITEMS})
    with connect_server(service) as url:
        yield url, service


@pytest.mark.parametrize("face", FACES)
def test_what_comes_during_a_request_is_the_next_one(face: Any) -> None:
    with faked() as (url, service):
        asked = [lookup("words", [[i], [i + 1]]) for i in range(20)]
        found = face(url, batching=Batching()).all(Held(service), lookup("words", 0), asked)
        for i, vectors in enumerate(found):
            np.testing.assert_array_equal(vectors, WORDS[[[i], [i + 1]]])
            vectors[:] = i  # memory of its own
        for i, vectors in enumerate(found):
            assert (vectors == i).all()
        if face is AsyncFace:
            assert [method for method, _ in service.calls] == ["Lookup", "Lookup"]
        assert len(service.calls) < 10


cases = st.tuples(
    st.sampled_from(["words", "words", "items", "nothing"]),
    st.sampled_from([3, [1], [[2], [600]], [39], [], [-1, 0], [1.5], list(range(30)), "x"]),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["float32", "float16", "bfloat16", np.float32, "int7"]),
            "missing": st.sampled_from(["error", "zero", "default", "never"]),
            "return_status": st.booleans(),
            "version": st.sampled_from([None, 7, True, 0]),
            "out": st.sampled_from([(1, 8), (2, 1, 8), (8,), (1, 3), (1, 9)]).map(
                lambda shape: np.empty(shape, np.float32)
            ),
        },
    ),
)


def outcome(result: Any) -> Any:
    if isinstance(result, BaseException):
        assert isinstance(result, GatherdError)
        return type(result), result.message, result.metadata
    parts = result if isinstance(result, tuple) else (result,)
    return [(part.dtype, part.shape, part.tolist()) for part in parts]


@pytest.mark.parametrize("face", FACES)
@settings(max_examples=25, deadline=None)
@given(drawn=st.lists(cases, min_size=1, max_size=12))
def test_each_gets_what_it_would_get_alone(face: Any, drawn: Any) -> None:
    asked = [lookup(table, ids, **own) for table, ids, own in drawn]
    alone: list[Any] = []
    with faked() as (url, service):
        with Client(url) as client:
            for args, own in asked:
                try:
                    alone.append(outcome(client.lookup(*args, **own)))
                except GatherdError as error:
                    alone.append(outcome(error))
        batching = Batching(lookup_ids_max=20, ids_max=20)
        found = face(url, batching=batching).all(Held(service), lookup("words", 0), asked)
    for (_, own), result, wanted in zip(asked, found, alone, strict=True):
        assert outcome(result) == wanted
        if "out" in own and isinstance(result, np.ndarray):
            assert result is own["out"]


@pytest.mark.parametrize("face", FACES)
def test_one_bad_id_fails_nobody_else(face: Any) -> None:
    with faked() as (url, service):
        asked = [lookup("words", [[i, 499], [i, 0]]) for i in range(16)]
        asked[5] = lookup("words", [[0, 1], [500, 2]])
        asked[6] = lookup("nothing", 1)
        found = face(url, batching=Batching()).all(Held(service), lookup("words", 0), asked)
        assert isinstance(found[5], IdOutOfRange)
        assert "ids[2]" in found[5].message or "ids[1]" in found[5].message
        assert isinstance(found[6], TableNotFound)
        for i in {*range(16)} - {5, 6}:
            np.testing.assert_array_equal(found[i], WORDS[[[i, 499], [i, 0]]])


@pytest.mark.parametrize("face", FACES)
def test_a_server_that_is_away_fails_all_and_at_once(face: Any) -> None:
    with faked() as (url, service):
        held = Held(service)
        service.failures = [Unavailable("not now") for _ in range(100)]
        asked = [lookup("words", i) for i in range(6)]
        found = face(url, batching=Batching(), retries=0).all(held, lookup("words", 0), asked)
        assert all(isinstance(one, Unavailable) for one in found)
        assert len({id(one) for one in found}) == 6  # each raises an error of its own
        assert len(service.calls) <= 7


@pytest.mark.parametrize("face", FACES)
def test_retries_are_made_for_the_merged_request(face: Any) -> None:
    with faked() as (url, service):
        held = Held(service)
        service.failures = [Unavailable("not now")]
        asked = [lookup("words", i) for i in range(6)]
        found = face(url, batching=Batching()).all(held, lookup("words", 0), asked)
        for i, vectors in enumerate(found):
            np.testing.assert_array_equal(vectors, WORDS[i])


@pytest.mark.parametrize("face", FACES)
def test_a_full_queue_is_overloaded(face: Any) -> None:
    with faked() as (url, service):
        asked = [lookup("words", i) for i in range(8)]
        found = face(url, batching=Batching(waiting_max=3)).all(
            Held(service), lookup("words", 0), asked
        )
        over = [one for one in found if isinstance(one, Overloaded)]
        assert over
        assert all("waiting_max" in one.message for one in over)
        answered = [(i, one) for i, one in enumerate(found) if not isinstance(one, Overloaded)]
        assert len(answered) >= 3
        for i, one in answered:
            np.testing.assert_array_equal(one, WORDS[i])


@pytest.mark.parametrize("face", FACES)
def test_each_has_a_deadline_of_its_own(face: Any) -> None:
    with faked() as (url, service):
        held = Held(service)
        release = threading.Timer(1.0, held.may_go.set)

        class Late(Held):
            """Lets go later than when all have asked."""

            def __init__(self) -> None:
                self.came, self.may_go = held.came, threading.Event()

        asked = [lookup("words", 1, timeout=0.2), lookup("words", 2, timeout=9)]
        release.start()
        began = time.monotonic()
        found = face(url, batching=Batching()).all(Late(), lookup("words", 0), asked)
        release.join()
        assert isinstance(found[0], DeadlineExceeded)
        np.testing.assert_array_equal(found[1], WORDS[2])
        assert time.monotonic() - began < 8


def test_a_cancelled_lookup_takes_nobody_with_it() -> None:
    async def run(url: str, held: Held, service: FakeService) -> None:
        async with AsyncClient(url, batching=Batching()) as client:
            first = asyncio.create_task(client.lookup("words", 0))
            await asyncio.to_thread(held.came.wait, 10)
            tasks = [asyncio.create_task(client.lookup("words", i)) for i in range(5)]
            await asyncio.sleep(0)
            first.cancel()
            tasks[2].cancel()
            await asyncio.sleep(0)
            held.may_go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[2], asyncio.CancelledError)
            for i in (0, 1, 3, 4):
                np.testing.assert_array_equal(found[i], WORDS[i])
            assert len(service.calls) == 2

    with faked() as (url, service):
        asyncio.run(run(url, Held(service), service))


def test_closing_ends_those_who_wait() -> None:
    async def run(url: str, held: Held) -> None:
        client = AsyncClient(url, batching=Batching())
        tasks = [asyncio.create_task(client.lookup("words", 0))]
        await asyncio.to_thread(held.came.wait, 10)
        tasks += [asyncio.create_task(client.lookup("words", i)) for i in range(3)]
        await asyncio.sleep(0)
        held.may_go.set()
        await client.aclose()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, ClientClosed) for one in found[1:])
        with pytest.raises(ClientClosed):
            await client.lookup("words", 0)

    with faked() as (url, service):
        asyncio.run(run(url, Held(service)))


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_too_large_or_by_key_is_sent_alone(count: int) -> None:
    keys: dict[str, list[Any]] = {"items": [row * 1000 - 7 for row in range(40)]}
    service = FakeService({"items": ITEMS}, keys)
    with (
        connect_server(service) as url,
        Client(url, batching=Batching(lookup_ids_max=2, ids_max=2)) as client,
    ):
        np.testing.assert_array_equal(client.lookup("items", np.arange(count)), ITEMS[:count])
        np.testing.assert_array_equal(client.lookup("items", keys=[993]), ITEMS[[1]])
        np.testing.assert_array_equal(client.lookup_many({"items": [4]})["items"], ITEMS[[4]])


def test_many_threads_get_their_own_rows() -> None:
    def look_up(client: Client, start: int) -> None:
        for i in range(start, start + 60):
            ids = np.array([i % 500, (i * 7) % 500])
            np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])

    with faked() as (url, _), Client(url, batching=Batching()) as client:
        with ThreadPoolExecutor(12) as threads:
            for done in [threads.submit(look_up, client, 37 * n) for n in range(12)]:
                done.result()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Batching(ids_max=0),
        lambda: Batching(waiting_max=True),
        lambda: Batching(lookup_ids_max=2.0),  # type: ignore[arg-type]
        lambda: Batching(lookup_ids_max=11, ids_max=10),
        lambda: Client("local:/nowhere", batching=Batching()),
        lambda: AsyncClient("local:/nowhere", batching=Batching()),
    ],
)
def test_bounds_that_mean_nothing_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgument):
        make()
