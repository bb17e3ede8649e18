"""Updates and changes by both clients, over every wire."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from client.clients import ITEMS, WORDS, word
from client.fake_updates import UpdatedService, ids_of
from client.fakes import connect_server, grpc_server
from gatherd import (
    AsyncClient,
    ChangeResult,
    Client,
    ClientClosed,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    NonfiniteValues,
    Overloaded,
    RequestIdStale,
    SnapshotResult,
    TableReadOnly,
    Unavailable,
    UpdateResult,
    VersionMismatch,
    VersionNotFound,
)

OPS = [("scatter_add", "deltas"), ("apply_gradients", "grads"), ("assign", "rows")]


@pytest.fixture
def service() -> UpdatedService:
    keys: dict[str, list[Any]] = {
        "words": [word(row).encode() for row in range(500)],
        "items": [row * 1000 - 7 for row in range(40)],
    }
    return UpdatedService({"words": WORDS.copy(), "items": ITEMS.copy()}, keys)


@pytest.fixture(params=["http", "unix", "grpc", "local"])
def server(
    request: pytest.FixtureRequest, service: UpdatedService, tmp_path: Path
) -> Iterator[str]:
    # Longer than a socket's path may be.
    data_dir = tmp_path / ("d" * 100)
    data_dir.mkdir()
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "http": lambda: connect_server(service),
        "unix": lambda: connect_server(service, tmp_path / "s.sock"),
        "grpc": lambda: grpc_server(service),
        "local": lambda: connect_server(service, tmp_path / "s.sock"),
    }
    with servers[request.param]() as url:
        if request.param == "local":
            (data_dir / "server.sock").symlink_to(tmp_path / "s.sock")
            yield f"local:{data_dir}"
        else:
            yield url


def test_updates_by_id(make: Any, server: str, service: UpdatedService) -> None:
    ids, values = np.array([[1, 2, 2], [499, 0, 1]]), np.arange(48.0).reshape(2, 3, 8)
    expected = WORDS.copy()
    with make(server) as client:
        assert client.scatter_add("words", ids, values) == UpdateResult(101, {"words": 7})
        np.add.at(expected, ids, values.astype(np.float32))
        np.testing.assert_array_equal(service.tables["words"], expected)

        assert client.apply_gradients("words", ids, values, lr=0.25).lsn == 102
        np.add.at(expected, ids, np.float32(-0.25) * values.astype(np.float32))
        np.testing.assert_array_equal(service.tables["words"], expected)

        assert client.assign("words", 3, values[0, 0]).lsn == 103
        expected[3] = values[0, 0]
        np.testing.assert_array_equal(service.tables["words"], expected)
    assert [name for name, _ in service.calls] == ["ScatterAdd", "ApplyGradients", "Assign"]


def test_updates_by_key(make: Any, server: str, service: UpdatedService) -> None:
    with make(server) as client:
        client.scatter_add("words", keys=[[word(4)], [word(9)]], deltas=np.ones((2, 1, 8)))
        client.assign("items", keys=np.array([993, -7]), rows=[[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(service.tables["words"][[4, 9]], WORDS[[4, 9]] + 1)
    np.testing.assert_array_equal(service.tables["items"][[1, 0]], [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(("op", "what"), OPS)
def test_many_tables_are_updated_in_one_push(
    make: Any, server: str, service: UpdatedService, op: str, what: str
) -> None:
    words, items = np.ones((1, 8), np.float16), np.full((2, 3), 2.0)
    with make(server) as client:
        found = getattr(client, f"{op}_many")(
            {"words": ([5], words)}, keys={"items": ([-7, 993], items)}, if_version={"items": 7}
        )
        assert found == UpdateResult(101, {"words": 7, "items": 7})
        (push,) = service.pushes
        assert [update.if_version for update in push.updates] == [0, 7]
        for wrong in ({}, {"words": [5]}, {"words": ([5], words, 1)}, {"words": (None, words)}):
            with pytest.raises(InvalidArgument):
                getattr(client, f"{op}_many")(wrong)
        with pytest.raises(InvalidArgument, match="ids and keys"):
            getattr(client, f"{op}_many")({"items": ([1], words)}, keys={"items": ([1], words)})
        with pytest.raises(InvalidArgument, match="'words', which"):
            getattr(client, f"{op}_many")({"items": ([1], [[1, 2, 3]])}, if_version={"words": 1})
    assert len(service.pushes) == 1


def test_a_learning_rate_is_one_for_all_or_one_a_table(make: Any, service: UpdatedService) -> None:
    grads = {"words": ([1], np.ones((1, 8))), "items": ([1], np.ones((1, 3)))}
    with connect_server(service) as url, make(url) as client:
        client.apply_gradients_many(grads, lr=0.5)
        client.apply_gradients_many(grads, lr={"items": 0.0})
        client.apply_gradients_many(grads)
        for lr in ("1", True, float("nan"), 1e39, {"words": None, "x": 1.0}):
            with pytest.raises(InvalidArgument, match="lr"):
                client.apply_gradients_many(grads, lr=lr)
    sent = [
        [one.learning_rate if one.HasField("learning_rate") else None for one in push.updates]
        for push in service.pushes
    ]
    assert sent == [[0.5, 0.5], [None, 0.0], [None, None]]


@pytest.mark.parametrize(("op", "what"), OPS)
def test_what_cannot_be_sent_is_refused_before(
    make: Any, service: UpdatedService, op: str, what: str
) -> None:
    two = np.zeros((2, 8))
    wrong: list[tuple[Any, Any]] = [
        ([1, 2], np.zeros((3, 8))),
        ([1, 2], np.zeros(8)),
        ([1, 2], 1.0),
        ([[1, 2]], two),
        (1, np.zeros((1, 8))),
        ([1, 2], None),
        (None, two),
        ([1, 2], two.astype(bool)),
        ([1, 2], two.astype(complex)),
        ([1, 2], [["a"] * 8] * 2),
        ([1, 2], [[1.0], [2.0, 3.0]]),
        ([1, 2], np.zeros((2, 8), "V4")),
        ([1.5, 2], two),
    ]
    with connect_server(service) as url, make(url) as client:
        for ids, values in wrong:
            with pytest.raises(InvalidArgument):
                getattr(client, op)("words", ids, values)
        with pytest.raises(InvalidArgument, match="both ids and keys"):
            getattr(client, op)("words", [1, 2], two, keys=["a", "b"])
        for key in ("", "a b", "ä", "x" * 256, 7):
            with pytest.raises(InvalidArgument, match="idempotency_key"):
                getattr(client, op)("words", [1, 2], two, idempotency_key=key)
        for version in (0, -1, 1.0, True, "1", 2**64):
            with pytest.raises(InvalidArgument, match="if_version"):
                getattr(client, op)("words", [1, 2], two, if_version=version)
        for bad in (float("nan"), float("inf"), -float("inf"), 1e39):
            for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
                values = np.zeros((9, 2, 8))
                values[3, 1, 5:] = values[8, 0, 0] = bad
                with np.errstate(over="ignore"):
                    given = values.astype(dtype)
                with pytest.raises(NonfiniteValues) as caught:
                    getattr(client, op)("words", np.zeros((9, 2), int), given)
                assert f"{what}[3][1][5]=" in caught.value.message
                assert f"{what}[8][0][0]=" in caught.value.message
                assert caught.value.metadata["offenders"] == "2"
    assert not service.calls


def test_values_that_are_too_large_for_float32_are_shown_as_they_were_given(make: Any) -> None:
    with make("http://127.0.0.1:1") as client, pytest.raises(NonfiniteValues, match=r"1e\+300"):
        client.assign("words", [0], [[1e300, 0.0]])
    with make("http://127.0.0.1:1") as client, pytest.raises(NonfiniteValues, match="4 more"):
        client.assign("words", range(9), np.full((9, 2), np.nan))


def test_every_try_of_a_push_has_its_id_and_its_bytes(
    make: Any, server: str, service: UpdatedService
) -> None:
    service.lost = 2
    with make(server) as client:
        assert client.scatter_add("words", [7, 7], np.ones((2, 8))).lsn == 101
        service.lost = 1
        client.scatter_add("words", [8], np.ones((1, 8)))
    expected = [WORDS[7] + 1 + 1, WORDS[8] + 1]
    np.testing.assert_array_equal(service.tables["words"][[7, 8]], expected)
    assert len(set(service.bodies[:3])) == len(set(service.bodies[3:])) == 1
    ids = ids_of(service)
    assert ids == [(ids[0][0], 1)] * 3 + [(ids[0][0], 2)] * 2


def test_a_push_with_large_values_arrives_whole(
    make: Any, server: str, service: UpdatedService
) -> None:
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 500, 70_000).astype(np.int32)
    rows = rng.standard_normal((70_000, 8), np.float32)
    service.lost = 1
    with make(server) as client:
        client.assign("words", ids, rows)
        client.assign_many({"items": ([1], ITEMS[:1]), "words": (ids, rows[:, ::-1])})
    expected = WORDS.copy()
    expected[ids] = rows[:, ::-1]
    np.testing.assert_array_equal(service.tables["words"], expected)


def test_a_callers_own_key_outlives_the_client(
    make: Any, server: str, service: UpdatedService
) -> None:
    for _ in range(2):
        with make(server) as client:
            result = client.scatter_add("words", [7], np.ones((1, 8)), idempotency_key="step-17")
            assert result.lsn == 101
    assert [push.WhichOneof("request_id") for push in service.pushes] == ["idempotency_key"] * 2
    np.testing.assert_array_equal(service.tables["words"][7], WORDS[7] + 1)


def test_pushes_at_once_have_numbers_of_their_own(server: str, service: UpdatedService) -> None:
    with Client(server) as client:

        def push() -> None:
            for _ in range(20):
                client.scatter_add("words", [3], np.ones((1, 8)))

        threads = [threading.Thread(target=push) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({session for session, _ in ids_of(service)}) == 1
    assert sorted(number for _, number in ids_of(service)) == list(range(1, 161))


def test_awaited_pushes_at_once_have_numbers_of_their_own(
    server: str, service: UpdatedService
) -> None:
    async def main() -> None:
        async with AsyncClient(server) as client:
            await asyncio.gather(
                *(client.scatter_add("words", [3], np.ones((1, 8))) for _ in range(50))
            )

    asyncio.run(main())
    assert sorted(number for _, number in ids_of(service)) == list(range(1, 51))


def test_two_clients_are_two_sessions(make: Any, server: str, service: UpdatedService) -> None:
    for _ in range(2):
        with make(server) as client:
            client.scatter_add("words", [3], np.ones((1, 8)))
    (first, one), (second, other) = ids_of(service)
    assert first != second
    assert one == other == 1


def test_a_session_that_the_server_forgot_is_begun_anew(
    make: Any, server: str, service: UpdatedService
) -> None:
    delta = np.ones((1, 8))
    with make(server) as client:
        client.scatter_add("words", [3], delta)
        service.failures = [RequestIdStale("forgotten")]
        client.scatter_add("words", [3], delta)
        client.scatter_add("words", [3], delta)
        (old, _), (new, first), (same, second) = ids_of(service)
        assert new == same != old
        assert (first, second) == (1, 2)
        # The session isn't begun anew for a push that may have been done.
        service.failures = [Unavailable("gone"), RequestIdStale("forgotten")]
        with pytest.raises(RequestIdStale):
            client.scatter_add("words", [3], delta)
        service.failures = [RequestIdStale("forgotten"), RequestIdStale("again")]
        with pytest.raises(RequestIdStale, match="again"):
            client.scatter_add("words", [3], delta)
        service.failures = [RequestIdStale("forgotten")]
        with pytest.raises(RequestIdStale):
            client.scatter_add("words", [3], delta, idempotency_key="mine")
    np.testing.assert_array_equal(service.tables["words"][3], WORDS[3] + 1 + 1 + 1)


def test_an_error_says_when_the_push_may_have_been_done(
    make: Any, server: str, service: UpdatedService
) -> None:
    service.lost = 9
    with make(server, retries=1) as client:
        with pytest.raises(Unavailable, match="isn't known whether the push was done") as caught:
            client.scatter_add("words", [3], np.ones((1, 8)))
        assert caught.value.metadata["outcome"] == "unknown"
        service.lost = 0
        service.failures = [Overloaded("full")] * 2
        with pytest.raises(Overloaded) as refused:
            client.scatter_add("words", [3], np.ones((1, 8)))
        assert "outcome" not in refused.value.metadata
        assert "known" not in refused.value.message
        service.lost = 1
        service.before = lambda method: (
            service.failures.append(VersionMismatch("now 8 is live")) if service.lost == 0 else None
        )
        with pytest.raises(VersionMismatch, match="isn't known"):
            client.scatter_add("words", [3], np.ones((1, 8)), if_version=7)


def test_a_deadline_leaves_it_open_whether_a_push_was_done(
    make: Any, server: str, service: UpdatedService
) -> None:
    released = threading.Event()
    service.before = lambda method: (released.wait(10), None)[1]
    try:
        with make(server) as client:
            with pytest.raises(DeadlineExceeded, match="known whether the push was done"):
                client.assign("words", [3], np.ones((1, 8)), timeout=0.1)
            with pytest.raises(DeadlineExceeded, match="known whether the version was published"):
                client.publish("words", timeout=0.1)
    finally:
        released.set()


def test_a_push_is_never_split(make: Any, server: str, service: UpdatedService) -> None:
    service.limits = {"request_bytes_max": 1000}
    with make(server) as client, pytest.raises(LimitExceeded, match="send it as several"):
        client.assign("words", range(100), np.ones((100, 8)))
    assert len(service.calls) == 1
    assert not service.pushes


def test_a_refused_push_is_not_tried_again(make: Any, server: str, service: UpdatedService) -> None:
    service.failures = [TableReadOnly("`gatherd set-optimizer words sgd` makes it trainable")]
    with make(server) as client, pytest.raises(TableReadOnly, match="trainable"):
        client.assign("words", [1], np.ones((1, 8)))
    assert len(service.calls) == 1


def test_changes_of_tables(make: Any, server: str, service: UpdatedService) -> None:
    with make(server) as client:
        optimizer = {"name": "adam", "lr": 0.25}
        drawn = {"name": "variance_scaling", "scale": 2, "mode": "fan_out"}
        made = client.create_table(
            "new", 10, 4, dtype="float16", init=drawn, seed=0, optimizer=optimizer
        )
        assert made == ChangeResult(7, 101)
        client.create_table("plain", 10, 4)
        client.publish("words", staged="abc", if_version=7)
        client.rollback("words")
        client.rollback("words", 3, if_version=7)
        client.set_optimizer("words", "adagrad", lr=0.5, eps=1, if_version=7)
        client.set_optimizer("words", optimizer)
        client.delete_table("words")
        assert client.snapshot("nightly") == SnapshotResult("/snapshots/nightly", 109)
    shown = [str(change).split() for change in service.changes]
    assert shown[1] == ["table:", '"plain"', "rows:", "10", "dim:", "4", "dtype:",
                        "DTYPE_FLOAT32", "init:", '"uniform"']  # fmt: skip
    new, plain, published, back, back_to, adagrad, adam, _, _ = service.changes
    assert (new.dtype, new.init, new.HasField("seed"), new.seed) == (2, "variance_scaling", True, 0)
    assert (dict(new.init_parameters), dict(new.init_words)) == (
        {"scale": 2.0},
        {"mode": "fan_out"},
    )
    assert not plain.HasField("seed")
    assert not plain.HasField("optimizer")
    for one in (new.optimizer, adam.optimizer):
        assert (one.name, dict(one.options)) == ("adam", {"lr": 0.25})
    assert (published.staged, published.if_version) == ("abc", 7)
    assert (back.version, back.if_version, back_to.version, back_to.if_version) == (0, 0, 3, 7)
    assert dict(adagrad.optimizer.options) == {"lr": 0.5, "eps": 1.0}


def test_changes_that_cannot_be_sent_are_refused_before(make: Any) -> None:
    with make("http://127.0.0.1:1") as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.create_table("x", -1, 4),
            lambda: client.create_table("x", 1.5, 4),
            lambda: client.create_table("x", 1, True),
            lambda: client.create_table("x", 1, 4, dtype="int8"),
            lambda: client.create_table("x", 1, 4, seed=-1),
            lambda: client.create_table("x", 1, 4, optimizer={"lr": 1.0}),
            lambda: client.create_table("x", 1, 4, optimizer=7),
            lambda: client.set_optimizer("x", "adam", lr="1"),
            lambda: client.set_optimizer("x", "adam", nesterov=True),
            lambda: client.set_optimizer("x", {"name": "adam", "lr": 1.0}, lr=1.0),
            lambda: client.publish("x", staged=7),
            lambda: client.publish("\ud800"),
            lambda: client.rollback("x", 0),
            lambda: client.delete_table(7),
            lambda: client.snapshot(None),
        ]
        for call in calls:
            with pytest.raises(InvalidArgument):
                call()


def test_a_change_is_tried_again_only_when_it_was_not_made(
    make: Any, server: str, service: UpdatedService
) -> None:
    service.failures = [Overloaded("full"), Unavailable("starting")]
    with make(server) as client:
        client.publish("words")
        assert len(service.calls) == 3
        service.lost = 1
        with pytest.raises(Unavailable, match="isn't known whether the version was published"):
            client.publish("words")
        assert len(service.calls) == 4
        assert len(service.changes) == 2


def test_a_table_tells_its_versions_and_optimizer(make: Any, service: UpdatedService) -> None:
    with connect_server(service) as url, make(url) as client:
        info = client.table("words")
        assert info.versions == client.versions("words") == (5, 7)
        assert info.optimizer == {"name": "adagrad", "lr": 0.5}
        assert (info.lsn, info.trainable) == (100, True)
        assert info == client.tables()[0]


@pytest.mark.parametrize("limits", [{}, {"ids_max": 2}])
def test_lookups_can_ask_for_a_version(
    make: Any, service: UpdatedService, limits: dict[str, int]
) -> None:
    service.limits = limits
    with connect_server(service) as url, make(url) as client:
        client.lookup("words", range(6), version=7)
        client.lookup_bags("words", [[1, 2], [3]], version=7)
        client.keys_of("words", range(6), version=7)
        assert set(service.versions_asked) == {7}
        service.versions_asked.clear()
        client.lookup_many({"words": [1], "items": [2]}, version={"items": 7})
        client.lookup_bags_many({"words": [[1]], "items": [[2]]}, version={"words": 7})
        assert service.versions_asked == [0, 7, 7, 0]
        before = len(service.calls)
        service.failures = [VersionNotFound("version 6 isn't kept")]
        with pytest.raises(VersionNotFound):
            client.lookup("words", range(6), version=6)
        # Nothing is begun again: the version that was asked for won't come back.
        assert len(service.calls) - before == 1
        for version in (0, -1, True, 1.0, "1"):
            with pytest.raises(InvalidArgument, match="version"):
                client.lookup("words", [1], version=version)
        with pytest.raises(InvalidArgument, match="'words', which"):
            client.lookup_many({"items": [1]}, version={"words": 7})


def test_nobody_serving_a_data_dir_says_how_to_change_that(make: Any, tmp_path: Path) -> None:
    with make(f"local:{tmp_path}", retries=0) as client:
        with pytest.raises(Unavailable) as caught:
            client.scatter_add("words", [1], [[1.0]])
        assert str(caught.value) == (
            f"no server runs on data dir {tmp_path}; start one with "
            f"`gatherd serve --data-dir {tmp_path}`"
        )
        with pytest.raises(Unavailable, match="no server runs"):
            client.publish("words")


def test_a_closed_client_pushes_nothing(service: UpdatedService) -> None:
    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.scatter_add("words", [1], np.ones((1, 8)))
        with pytest.raises(ClientClosed):
            await client.scatter_add("words", [1], np.ones((1, 8)))

    with connect_server(service) as url:
        with Client(url) as client:
            client.scatter_add("words", [1], np.ones((1, 8)))
        with pytest.raises(ClientClosed):
            client.scatter_add("words", [1], np.ones((1, 8)))
        asyncio.run(main(url))
    assert len(service.pushes) == 2
