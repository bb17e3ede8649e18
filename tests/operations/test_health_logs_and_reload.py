"""Readiness with a word on updates, request ids in answers and log, settings changed by SIGHUP."""

import os
import re
import signal
import struct
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

import gatherd
from gatherd import Client
from gatherd.errors import TableNotFound
from gatherd.store.control import FAILED_OFFSET
from operations.conftest import Operated
from support.server import RunningServer, run_cli, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
PROTO = {"Content-Type": "application/proto"}
OCTETS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def failing(url: str, headers: dict[str, str]) -> list[httpx.Response]:
    """Requests that fail on the fast path and past it, in Connect and in REST."""
    far = np.array([10**6]).tobytes()
    connect = f"{url}/gatherd.v1.EmbeddingService"
    return [
        httpx.post(f"{url}/v1/tables/items:lookup", json={"ids": [10**6]}, headers=headers),
        httpx.post(f"{url}/v1/tables/items:lookup", content=far, headers={**OCTETS, **headers}),
        httpx.post(f"{connect}/Lookup", content=b"\xff", headers={**PROTO, **headers}),
        httpx.post(f"{connect}/KeysOf", content=b"\xff", headers={**PROTO, **headers}),
        httpx.get(f"{url}/nothing", headers=headers),
    ]


def test_errors_carry_the_clients_request_id(operated: Operated) -> None:
    for reply in failing(operated.server.http, {"X-Request-Id": "abc-1", "traceparent": "no"}):
        assert reply.status_code >= 400
        assert reply.headers.get_list("x-request-id") == ["abc-1"], reply.request.url


def test_errors_of_the_sdk_have_the_requests_id(operated: Operated) -> None:
    for url in (operated.server.http, operated.server.grpc):
        with Client(url) as client:
            with gatherd.request_headers({"X-Request-Id": "mine-7"}):
                with pytest.raises(TableNotFound) as named:
                    client.lookup("nope", [1])
            assert named.value.metadata["request_id"] == "mine-7"
            with pytest.raises(TableNotFound) as made:
                client.lookup("nope", [1])
            assert re.fullmatch("[0-9a-f]{32}", made.value.metadata["request_id"])


def test_errors_carry_the_trace_id_where_there_is_no_request_id(operated: Operated) -> None:
    for reply in failing(operated.server.http, {"traceparent": TRACEPARENT}):
        assert reply.headers["x-request-id"] == TRACE, reply.request.url


@pytest.mark.parametrize("given", [{}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 129}])
def test_errors_carry_an_id_that_was_made_otherwise(
    operated: Operated, given: dict[str, str]
) -> None:
    ids = [reply.headers["x-request-id"] for reply in failing(operated.server.http, given)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert len(set(ids)) == len(ids)


def test_answers_that_are_no_errors_carry_none(operated: Operated) -> None:
    named = {"X-Request-Id": "abc-2"}
    lookup = f"{operated.server.http}/v1/tables/items:lookup"
    one = np.array([1]).tobytes()
    for reply in (
        httpx.post(lookup, json={"ids": [1]}, headers=named),
        httpx.post(lookup, content=one, headers={**OCTETS, **named}),
    ):
        assert reply.status_code == 200
        assert "x-request-id" not in reply.headers


def test_a_reload_takes_the_log_level_to_every_process(operated: Operated) -> None:
    def reload(text: str) -> None:
        seen = len(operated.logged())
        operated.config.write_text(text)
        os.kill(operated.server.process.pid, signal.SIGHUP)
        wait_until(
            lambda: any("settings" in one["message"] for one in operated.logged()[seen:]),
            "the supervisor logs the reload",
        )

    def fails_in_log(request_id: str) -> bool:
        failing(operated.server.http, {"X-Request-Id": request_id})
        told = [one for one in operated.logged() if one.get("request_id") == request_id]
        return len(told) >= 5

    assert not fails_in_log("before-1")
    reload('log_level = "debug"\nkeep_alive_seconds = 9\n')
    assert "a restart would change keep_alive_seconds" in str(operated.logged())
    # Which of the workers answers isn't known, so each failure is tried until all are there.
    wait_until(lambda: fails_in_log("debugged-1"), "both workers log what fails")
    told = [one for one in operated.logged() if one.get("request_id") == "debugged-1"]
    assert {one["level"] for one in told} == {"debug"}
    assert {(one["wire"], one["procedure"], one["code"]) for one in told} >= {
        ("rest", "Lookup", "invalid_argument"),
        ("connect", "Lookup", "invalid_argument"),
        ("rest", "unknown", "not_found"),
    }
    reload('log_level = "nonsense"\n')
    assert "the settings stay as they are" in str(operated.logged())
    assert operated.scrape().total("gatherd_reloads_total", outcome="refused") == 1
    assert operated.scrape().total("gatherd_reloads_total", outcome="done") >= 1
    reload('log_level = "info"\n')


def test_every_line_of_the_log_is_json_with_time_level_and_message(operated: Operated) -> None:
    lines = operated.logged()
    assert any(one["message"] == "writer is ready" for one in lines)
    for one in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one["time"])
        assert one["level"] in ("debug", "info", "warning", "error", "critical")
        assert {"logger", "pid", "message"} <= set(one)


def test_readiness_tells_of_running_updates(operated: Operated) -> None:
    reply = httpx.get(f"{operated.server.http}/readyz")
    assert reply.status_code == 200
    assert reply.json() == {"status": "ready", "updates": "running", "tables": 1, "refused": []}


def test_readiness_tells_that_a_failed_disk_stopped_updates(operated: Operated) -> None:
    # What the writer leaves in the control page when its disk fails (docs/durability.md).
    def fail(word: int) -> None:
        with open(operated.data_dir / "control", "r+b", buffering=0) as page:
            page.seek(FAILED_OFFSET)
            page.write(struct.pack("<Q", word))

    fail(1)
    try:
        reply = httpx.get(f"{operated.server.http}/readyz")
        assert (reply.status_code, reply.json()["updates"]) == (200, "stopped")
        assert operated.scrape().total("gatherd_updates_up") == 0
        with Client(operated.server.http) as client:
            client.lookup("items", [1])
    finally:
        fail(0)


def test_a_server_of_files_has_no_updates_to_tell_of(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    with RunningServer(f"words={tmp_path}/a.npy", "--no-metrics") as server:
        assert httpx.get(f"{server.http}/readyz").json()["updates"] == "none"
        assert httpx.get(f"{server.http}/metrics").status_code == 404


def test_a_server_that_stops_says_so_first_and_goes_on_answering(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    with RunningServer(f"words={tmp_path}/a.npy", "--unready-seconds", "300") as server:
        with grpc.insecure_channel(server.grpc.removeprefix("grpc://")) as channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")

            def health() -> Any:
                return health_pb2.HealthCheckResponse.FromString(check(b"")).status

            assert httpx.get(f"{server.http}/readyz").status_code == 200
            assert health() == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            wait_until(
                lambda: httpx.get(f"{server.http}/readyz").status_code == 503, "it isn't ready"
            )
            wait_until(
                lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING, "over gRPC too"
            )
            assert httpx.get(f"{server.http}/healthz").status_code == 200
            for url in (server.http, server.grpc):
                with Client(url) as client:
                    assert client.lookup("words", [1]).tolist() == [[1, 1]]
        assert server.stop() == 0  # by a second signal


def test_top_prints_a_screen_once(operated: Operated) -> None:
    screen = run_cli("top", operated.server.http, "--once", "--interval", "0.6").stdout
    head, updates, *rest = screen.splitlines()
    assert head.startswith(f"gatherd {operated.server.http}   ")
    assert updates.startswith("updates: running")
    assert [line.split()[:2] for line in rest if line.startswith("items")] == [["items", "0"]]
    assert [line.split()[1] for line in rest if line.startswith(("worker-", "writer"))] == [
        *("yes", "yes", "yes")
    ]


def test_top_says_in_a_line_what_it_cannot_read() -> None:
    done = run_cli("top", "http://127.0.0.1:1", "--once", check=False)
    assert done.returncode > 1
    assert len(done.stderr.splitlines()) == 1


def test_requests_are_spans_in_their_clients_traces(operated: Operated) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    url = operated.server.http
    httpx.post(f"{url}/v1/tables/items:lookup", json={"ids": [1]}, headers=headers)
    one = np.array([1]).tobytes()
    fast = f"{url}/v1/tables/items:lookup"
    httpx.post(fast, content=one, headers={**OCTETS, **headers})
    add = {"ids": [1], "values": [[1.0] * 8]}
    pushed = httpx.post(f"{url}/v1/tables/items:scatterAdd", json=add, headers=headers)
    assert pushed.status_code == 200, pushed.text
    httpx.get(f"{url}/v1/tables/absent", headers=headers)

    def mine() -> list[tuple[str, str, str]]:
        return sorted(
            (span["name"], span["parent_id"], span["status"]["status_code"])
            for span in operated.spans()
            if span["context"]["trace_id"] == f"0x{trace}"
        )

    def linking() -> list[str]:
        return [
            span["name"]
            for span in operated.spans()
            if f"0x{trace}" in [link["context"]["trace_id"] for link in span["links"]]
        ]

    parent = "0x00f067aa0ba902b7"
    wait_until(lambda: len(mine()) == 4 and bool(linking()), "the spans are written")
    assert mine() == [
        ("GetTable", parent, "ERROR"),
        ("Lookup", parent, "UNSET"),
        ("Lookup", parent, "UNSET"),
        ("ScatterAdd", parent, "UNSET"),
    ]
    assert linking() == ["commit"]
    wait_until(
        lambda: any(span["name"] == "checkpoint" for span in operated.spans()),
        "a checkpoint is traced",
    )
