"""Versions as clients of a running server see them: pushes, lookups and retries around publishes.

One server with two workers has a data dir, and a file that it serves where it lies.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from gatherd import Client
from gatherd.errors import AlreadyExists, FailedPrecondition, VersionMismatch, VersionNotFound
from support.cli import invoke
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

ROWS, DIM, KEEP = 10, 4, 1
ONE = np.ones((1, DIM), np.float32)


@dataclass(frozen=True, slots=True)
class Served:
    """A server, and its data dir."""

    server: RunningServer
    data_dir: Path

    @property
    def urls(self) -> list[str]:
        """Every way to it. Each new client may get another worker."""
        return [self.server.http, self.server.grpc, f"local:{self.data_dir}"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("live")
    data = root / "data"
    make_data_dir(data, drawn_table("first", ROWS, DIM))
    np.save(root / "file.npy", np.ones((3, 2), np.float32))
    options = ("--workers", "2", "--keep-versions", str(KEEP))
    with RunningServer(f"filed={root}/file.npy", "--data-dir", data, *options) as server:
        yield Served(server, data)


@pytest.fixture
def table(served: Served, request: pytest.FixtureRequest) -> str:
    """A table of the test's own, of zeros, trained by SGD at the rate 0.5."""
    name = f"t-{request.node.name}"[:100].replace("[", "-").replace("]", "").replace(":", "")
    with Client(served.server.http) as client:
        client.create_table(name, ROWS, DIM, init="zeros", optimizer={"name": "sgd", "lr": 0.5})
    return name


def test_a_push_changes_the_live_version_alone(served: Served, table: str) -> None:
    for url in served.urls:
        with Client(url) as client:
            before = client.table(table).version
            old = client.lookup(table, [2])
            assert client.scatter_add(table, [2], ONE).versions == {table: before}
            live = client.publish(table).version
            assert live == before + 1
            done = client.scatter_add(table, [2], ONE, if_version=live)
            assert done.versions == {table: live}
            with pytest.raises(VersionMismatch, match=f"version {live} live; .* version {before}"):
                client.scatter_add(table, [2], ONE, if_version=before)
        for other in served.urls:
            with Client(other) as client:
                np.testing.assert_array_equal(client.lookup(table, [2], version=before), old + 1)
                np.testing.assert_array_equal(client.lookup(table, [2]), old + 2)


def test_a_version_that_was_rolled_back_to_goes_on_from_where_it_was(
    served: Served, table: str
) -> None:
    with Client(served.server.grpc) as client:
        client.scatter_add(table, [1], ONE)
        client.publish(table, if_version=1)
        client.scatter_add(table, [1], ONE * 10)
        assert client.rollback(table, if_version=2).version == 1
        np.testing.assert_array_equal(client.lookup(table, [1]), ONE)
        client.scatter_add(table, [1], ONE)
        np.testing.assert_array_equal(client.lookup(table, [1], version=2), ONE * 11)
        assert client.rollback(table, 2).version == 2
        np.testing.assert_array_equal(client.lookup(table, [1], version=1), ONE * 2)
        with pytest.raises(VersionMismatch):
            client.rollback(table, 1, if_version=1)
    told = invoke("verify", table, "--data-dir", served.data_dir).stdout.splitlines()
    assert told[0] == f"{table} v1: ok"
    # Live, and pushed to since the last checkpoint.
    assert re.fullmatch(
        f"{table} v2: ok(, but for .* bytes that moved or have no sum yet)?", told[1]
    )


def test_the_number_that_publish_returns_is_trained_further_and_the_one_before_is_kept(
    served: Served, table: str
) -> None:
    """docs/versions.md has these steps in a table."""
    with Client(served.server.http) as client:
        client.scatter_add(table, [2], ONE)
        assert client.publish(table).version == 2
        client.scatter_add(table, [2], ONE)
        assert client.rollback(table).version == 1
        assert client.lookup(table, [2])[0, 0] == 1
        assert client.rollback(table, 2).version == 2
        assert client.lookup(table, [2])[0, 0] == 2
        assert client.lookup(table, [2], version=1)[0, 0] == 1


def test_kept_versions_are_looked_up_and_the_others_are_gone(served: Served, table: str) -> None:
    with Client(served.server.http) as client:
        for value in (1, 2, 3):
            client.assign(table, [0], ONE * value)
            client.publish(table)
        client.assign(table, [0], ONE * 4)
    # Several connections, so that every worker is asked.
    for url in served.urls * 4:
        with Client(url) as client:
            info = client.table(table)
            assert (info.version, info.versions) == (4, (3, 4))
            np.testing.assert_array_equal(client.lookup(table, [0], version=3), ONE * 3)
            both = client.lookup_many({table: [0], "first": [0]}, version={table: 3})
            np.testing.assert_array_equal(both[table], ONE * 3)
            with pytest.raises(VersionNotFound, match="no version 2; it has 3, 4"):
                client.lookup(table, [0], version=2)
    for url in served.urls:
        for version, shown in ((3, "3 3 3 3"), (4, "4 4 4 4")):
            command = ("lookup", table, "0", "--version", str(version), "--url", url)
            assert invoke(*command).stdout == f"0: {shown}\n"
        gone = invoke("lookup", table, "0", "--version", "2", "--url", url, check=False)
        assert "has no version 2" in gone.stderr
    pooled = ("--pool", "sum", "--version", "3", "--url", served.server.http)
    assert invoke("lookup", table, "0", "0", *pooled).stdout == "sum of 2: 6 6 6 6\n"
    folders = served.data_dir / "tables" / table
    assert sorted(folder.name for folder in folders.iterdir()) == ["v000003", "v000004"]


def test_replies_name_the_version_that_answered(served: Served, table: str) -> None:
    with Client(served.server.http) as client:
        client.publish(table)
    lookup = f"{served.server.http}/v1/tables/{table}:lookup"
    for asked, answered in (({}, 2), ({"version": 1}, 1)):
        reply = httpx.post(lookup, json={"ids": [0], **asked}).json()
        assert reply["version"] == answered
        octets = httpx.post(
            lookup, json={"ids": [0], **asked}, headers={"Accept": "application/octet-stream"}
        )
        assert octets.status_code == 200, octets.text
        assert octets.headers["Gatherd-Version"] == str(answered)
    many = {"tables": {table: {"ids": [0]}, "first": {"ids": [0]}}}
    replies = httpx.post(f"{served.server.http}/v1/lookup", json=many).json()
    assert {name: one["version"] for name, one in replies["tables"].items()} == {
        table: 2,
        "first": 1,
    }


def test_a_retry_gets_its_first_answer_whatever_was_published_since(
    served: Served, table: str
) -> None:
    with Client(served.server.http) as client:
        first = client.apply_gradients(table, [3], ONE, idempotency_key=f"{table}/1", if_version=1)
        client.publish(table)
        for url in served.urls:
            with Client(url) as other:
                again = other.apply_gradients(
                    table, [3], ONE, idempotency_key=f"{table}/1", if_version=1
                )
            assert again == first
        client.set_optimizer(table, {"name": "adagrad", "lr": 1.0})
        again = client.apply_gradients(table, [3], ONE, idempotency_key=f"{table}/1", if_version=1)
        assert again == first
        np.testing.assert_array_equal(client.lookup(table, [3]), ONE * -0.5)


def test_every_listing_tells_version_optimizer_and_lsn_alike(served: Served, table: str) -> None:
    with Client(served.server.http) as client:
        client.publish(table)
        done = client.scatter_add(table, [0], ONE)
    rest = httpx.get(f"{served.server.http}/v1/tables/{table}").json()
    listed = httpx.get(f"{served.server.http}/v1/tables").json()["tables"]
    assert [one for one in listed if one["name"] == table] == [rest]
    assert (rest["version"], rest["versions"], rest["lsn"]) == (2, [1, 2], done.lsn)
    assert (rest["optimizer"]["name"], rest["optimizer"]["lr"]) == ("sgd", 0.5)
    for url in served.urls:
        (document,) = json.loads(invoke("tables", table, "--json", "--url", url).stdout)
        for member in ("version", "versions", "optimizer", "lsn", "rows", "dim", "trainable"):
            assert document[member] == rest[member]
        header, line = invoke("tables", table, "--url", url).stdout.splitlines()
        assert header.split()[-3:] == ["VERSION", "OPTIMIZER", "LSN"]
        assert line.split()[-3:] == ["2", "sgd", str(done.lsn)]
    (filed,) = invoke("tables", "filed", "--url", served.server.http).stdout.splitlines()[1:]
    assert filed.split()[-3:-1] == ["1", "-"]


def test_a_file_that_is_served_keeps_its_name_to_itself(served: Served, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((3, 2), np.float32))
    place = ("--data-dir", served.data_dir)
    hidden = "the server serves a file as table 'filed', which would hide the new one"
    with Client(served.server.grpc) as client:
        with pytest.raises(AlreadyExists, match=hidden):
            client.create_table("filed", 3, 2)
        changes: list[Callable[[], object]] = [
            lambda: client.publish("filed"),
            lambda: client.rollback("filed"),
            lambda: client.set_optimizer("filed", "sgd"),
            lambda: client.delete_table("filed"),
        ]
        for change in changes:
            with pytest.raises(FailedPrecondition, match="is a file that is served where it lies"):
                change()
        assert client.lookup("filed", [0]).tolist() == [[1, 1]]
    for command in (
        ("import", "filed", tmp_path / "rows.npy"),
        ("create", "filed", "--rows", "3", "--dim", "2"),
    ):
        assert hidden in invoke(*command, *place, check=False).stderr
    assert not list((served.data_dir / "staging").iterdir())


def test_health_follows_tables_that_come_and_go(served: Served) -> None:
    status: Any = health_pb2.HealthCheckResponse
    asked = health_pb2.HealthCheckRequest(service="tables/fleeting")
    with (
        Client(served.server.http) as client,
        grpc.insecure_channel(served.server.grpc.removeprefix("grpc://")) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        def check() -> str:
            try:
                return str(status.ServingStatus.Name(health.Check(asked).status))
            except grpc.RpcError as error:
                told: Any = error
                return str(told.code().name)

        watched: list[int] = []
        watching = health.Watch(asked)
        assert check() == "NOT_FOUND"
        assert next(watching).status == status.SERVICE_UNKNOWN
        for _ in range(2):
            client.create_table("fleeting", 3, 2)
            assert check() == "SERVING"
            watched.append(next(watching).status)
            client.delete_table("fleeting")
            assert check() == "NOT_FOUND"
            watched.append(next(watching).status)
        watching.cancel()
    assert watched == [status.SERVING, status.SERVICE_UNKNOWN] * 2


def test_what_was_live_before_a_publish_is_kept_rather_than_the_newest(
    served: Served, table: str
) -> None:
    with Client(served.server.http) as client:
        client.publish(table)
        client.rollback(table, 1)
        client.publish(table)
        # Version 2 is the one that was rolled back from; 1 is what 3 was copied from.
        assert (client.table(table).version, client.table(table).versions) == (3, (1, 3))
        client.rollback(table)
        assert client.table(table).version == 1
