"""What /metrics tells of a server of several processes, whichever of them is asked."""

import os
import platform
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import FailedPrecondition, IdOutOfRange, TableNotFound
from gatherd_server.cli.top import Scrape
from operations.conftest import DIM, Operated
from support.server import wait_until
from support.small_engine import lookup_request

REQUESTS = "gatherd_requests_total"


def test_lookups_on_every_worker_are_one_sum(operated: Operated) -> None:
    before = operated.scrape()
    # Each on a connection of its own: both workers get some.
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: look_up(operated.server.http, [1, 2, 3]), range(40)))

    def rose(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    labels = {"wire": "connect", "procedure": "Lookup", "code": "ok"}
    after = operated.settled(
        lambda seen: seen.total(REQUESTS, **labels) - before.total(REQUESTS, **labels) >= 40,
        "40 lookups are counted",
    )
    assert rose(REQUESTS, **labels) == 40
    assert rose("gatherd_table_lookups_total", table="items") == 40
    assert rose("gatherd_table_lookup_rows_total", table="items") == 120
    assert rose("gatherd_table_lookup_bytes_total", table="items") == 120 * DIM * 4
    timed = {"wire": "connect", "procedure": "Lookup"}
    assert rose("gatherd_request_duration_seconds_count", **timed) == 40
    assert 0 < rose("gatherd_request_duration_seconds_sum", **timed) < 40
    assert rose("gatherd_request_duration_seconds_bucket", le="+Inf", **timed) == 40
    assert after.label_values("gatherd_process_up", "process") == ["worker-0", "worker-1", "writer"]


def look_up(url: str, ids: list[int]) -> None:
    with Client(url) as client:
        client.lookup("items", ids)


def test_every_wire_and_outcome_is_counted_under_its_own_labels(operated: Operated) -> None:
    before = operated.scrape()
    http, grpc = operated.server.http, operated.server.grpc
    for url in (http, grpc):
        with Client(url) as client:
            with pytest.raises(IdOutOfRange):
                client.lookup("items", [10**6])
            with pytest.raises(TableNotFound):
                client.lookup("absent", [1])
            client.lookup_bags("items", [1, 2], [0])
    lookup = f"{http}/v1/tables/items:lookup"
    httpx.post(lookup, json={"ids": [1]})
    octets = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    httpx.post(lookup, content=np.array([1]).tobytes(), headers=octets)
    httpx.post(f"{http}/v1/lookup", json={"tables": {"items": {"ids": [1]}}})
    httpx.get(f"{http}/v1/tables")
    httpx.get(f"{http}/nothing/here")
    httpx.post(f"{http}/gatherd.v1.EmbeddingService/Nothing")
    wanted = {
        ("connect", "Lookup", "invalid_argument"): 1,
        ("connect", "Lookup", "not_found"): 1,
        ("connect", "LookupBags", "ok"): 1,
        ("grpc", "Lookup", "invalid_argument"): 1,
        ("grpc", "Lookup", "not_found"): 1,
        ("grpc", "LookupBags", "ok"): 1,
        ("rest", "Lookup", "ok"): 2,
        ("rest", "LookupMany", "ok"): 1,
        ("rest", "ListTables", "ok"): 1,
        ("rest", "unknown", "not_found"): 1,
        ("connect", "unknown", "unimplemented"): 1,
    }

    def rose(seen: object) -> dict[tuple[str, str, str], float]:
        now = operated.scrape()
        return {
            key: now.total(REQUESTS, wire=key[0], procedure=key[1], code=key[2])
            - before.total(REQUESTS, wire=key[0], procedure=key[1], code=key[2])
            for key in wanted
        }

    wait_until(lambda: rose(None) == wanted, f"{wanted} are counted")


def test_the_writer_tells_of_pushes_commits_log_and_checkpoints(operated: Operated) -> None:
    before = operated.scrape()
    for url in (operated.server.http, operated.server.grpc):
        with Client(url) as client:
            for _ in range(3):
                lsn = client.scatter_add("items", [1, 1], np.ones((2, DIM), np.float32)).lsn
    after = operated.settled(
        lambda seen: (
            seen.total("gatherd_applied_lsn") == seen.total("gatherd_checkpoint_lsn") == lsn
        ),
        "the pushes are in a checkpoint",
    )

    def rose(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert rose("gatherd_pushes_total", outcome="committed") == 6
    assert rose("gatherd_table_updated_rows_total", table="items") == 12
    assert rose("gatherd_commit_pushes_sum") == 6
    assert rose("gatherd_commit_duration_seconds_count") == rose("gatherd_commit_pushes_count") > 0
    assert rose("gatherd_log_written_bytes_total") >= 6 * DIM * 4
    assert rose("gatherd_checkpoint_duration_seconds_count") >= 1
    assert after.total("gatherd_committed_lsn") == lsn
    assert after.total("gatherd_log_segments") >= 1
    assert after.total("gatherd_log_bytes") > 0
    assert after.total("gatherd_updates_up") == 1
    assert after.total("gatherd_queued_pushes") == 0
    moved = rose("gatherd_checkpoint_timestamp_seconds")
    assert moved > 0


def test_a_snapshot_moves_its_timestamp(operated: Operated) -> None:
    assert operated.scrape().total("gatherd_snapshot_timestamp_seconds") == 0
    assert httpx.post(f"{operated.server.http}/v1/snapshots", timeout=60).status_code == 200
    after = operated.settled(
        lambda seen: seen.total("gatherd_snapshot_timestamp_seconds") > 0, "the snapshot is told"
    )
    assert after.total("gatherd_snapshots_total", outcome="taken") == 1


def test_missing_ids_are_counted_by_table_however_they_are_answered(operated: Operated) -> None:
    before = operated.scrape()
    for url in (operated.server.http, operated.server.grpc):
        with Client(url) as client:
            for _ in range(2):  # the second one is foreseen
                client.lookup("items", [1, -1, 10**6], missing="zero")
            client.lookup_bags("items", [1, -1], [0], missing="skip")
            client.lookup("items", [-1] * 5_000, missing="default")
            with pytest.raises(IdOutOfRange):
                client.lookup("items", [10**6, 10**6, 1])
    octets = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    lookup = f"{operated.server.http}/v1/tables/items:lookup"
    assert httpx.post(lookup, content=np.array([10**6]).tobytes(), headers=octets).is_error
    json = {"ids": [1, 10**6], "missing": "zero"}
    assert httpx.post(lookup, json=json).json()["status"] == [0, 1]
    wanted = 2 * (2 * 2 + 1 + 5_000 + 2) + 1 + 1

    def rose(seen: Scrape, **labels: str) -> float:
        name = "gatherd_table_missing_total"
        return seen.total(name, **labels) - before.total(name, **labels)

    after = operated.settled(lambda seen: rose(seen) >= wanted, f"{wanted} ids are counted")
    assert rose(after, table="items", by="id") == rose(after) == wanted


def test_lookups_of_a_superseded_version_are_counted_and_keep_it(operated: Operated) -> None:
    before = operated.scrape()
    name = "gatherd_table_superseded_lookups_total"
    with Client(operated.server.http) as client, Client(operated.server.grpc) as other:
        old = client.table("items").version
        live = client.publish("items").version
        for one in (client, other):
            one.lookup("items", [1], version=old)
            one.lookup("items", [1], version=live)
            one.lookup("items", [1])
            one.lookup_bags("items", [1], [0], version=old)
        after = operated.settled(
            lambda seen: seen.total(name) - before.total(name) >= 4, "4 lookups are counted"
        )
        assert after.total(name, table="items") - before.total(name) == 4
        with pytest.raises(FailedPrecondition, match="is in use: it was looked up"):
            client.delete_version("items", old)
        assert client.versions("items") == (old, live)


def test_connections_that_are_refused_are_counted_by_reason(operated: Operated) -> None:
    name = "gatherd_refused_connections_total"
    before = operated.scrape()
    host, port = operated.server.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")  # as TLS begins
        assert b" 400 " in peer.recv(1000)
    after = operated.settled(
        lambda seen: seen.total(name, reason="malformed") > before.total(name, reason="malformed"),
        "it is counted",
    )
    assert after.total(name) - before.total(name) == 1


def test_tables_and_processes_are_told_once_not_once_a_process(operated: Operated) -> None:
    seen = operated.scrape()
    assert seen.total("gatherd_table_rows", table="items") == 1000
    assert seen.total("gatherd_table_bytes", table="items") == 1000 * DIM * 4
    assert 0 < seen.total("gatherd_table_resident_bytes") <= 1000 * DIM * 4 + 4096
    assert seen.total("gatherd_table_refused") == 0
    processes = ["supervisor", "worker-0", "worker-1", "writer"]
    name = "gatherd_process_minor_page_faults_total"
    assert seen.label_values(name, "process") == processes
    assert all(seen.total(name, process=one) > 100 for one in processes)
    assert all(
        seen.total("gatherd_process_resident_memory_bytes", process=one) > 1 << 20
        for one in processes
    )
    assert seen.total("gatherd_build_info") == 1
    assert seen.label_values("gatherd_build_info", "version") == [version("gatherd")]
    assert seen.label_values("gatherd_build_info", "python") == [platform.python_version()]


def test_counters_go_on_after_a_worker_was_killed(operated: Operated) -> None:
    labels = {"wire": "grpc", "procedure": "Lookup", "code": "ok"}
    began = operated.scrape().total(REQUESTS, **labels)
    with Client(operated.server.grpc) as client:
        for _ in range(20):
            client.lookup("items", [1])
    before = operated.settled(
        lambda seen: seen.total(REQUESTS, **labels) == began + 20, "20 lookups are counted"
    )
    for pid in operated.server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    restarts = "gatherd_process_restarts_total"

    def are_back() -> bool:
        try:
            seen = operated.scrape()
        except httpx.HTTPError:
            return False
        return (
            seen.total(restarts) == before.total(restarts) + 2
            and seen.total("gatherd_process_up") == 3
        )

    wait_until(are_back, "both workers are back")
    with Client(operated.server.grpc) as client:
        client.lookup("items", [1])
    operated.settled(
        lambda seen: seen.total(REQUESTS, **labels) == began + 21, "the count went on from there"
    )


def test_a_writer_that_is_gone_is_told_and_comes_back(operated: Operated) -> None:
    (pid,) = operated.server.writer_pids()
    os.kill(pid, signal.SIGSTOP)  # it can't be back before it was seen to be gone
    try:
        assert operated.scrape().total("gatherd_process_up", process="writer") == 1
    finally:
        os.kill(pid, signal.SIGKILL)
    restarts = operated.scrape().total("gatherd_process_restarts_total", process="writer")
    operated.settled(
        lambda seen: (
            seen.total("gatherd_process_restarts_total", process="writer") > 0
            and seen.total("gatherd_updates_up") == 1
            and seen.total("gatherd_process_up", process="writer") == 1
        ),
        f"the writer is back after {restarts} restarts",
    )
    with Client(operated.server.http) as client:
        client.scatter_add("items", [1], np.ones((1, DIM), np.float32))


def test_errors_of_grpc_carry_the_request_id(operated: Operated) -> None:
    with grpc.insecure_channel(operated.server.grpc.removeprefix("grpc://")) as channel:
        call: Any = channel.unary_unary("/gatherd.v1.EmbeddingService/Lookup")
        with pytest.raises(grpc.RpcError) as raised:
            call(
                lookup_request("absent", [1]).SerializeToString(),
                metadata=[("x-request-id", "mine-7")],
            )
    error: Any = raised.value
    assert dict(error.trailing_metadata())["x-request-id"] == "mine-7"
