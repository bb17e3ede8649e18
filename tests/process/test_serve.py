"""`gatherd serve` as a process: starting, refusing to start, workers that die, and stopping."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import TableRefused, Unavailable
from support.server import (
    RunningServer,
    children,
    clean_environment,
    pss_bytes,
    run_cli,
    wait_until,
)

ROWS = np.random.default_rng(9).normal(size=(20_000, 64)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", ROWS)
    return tmp_path / "a.npy"


def start_error(*arguments: str | Path) -> str:
    done = run_cli("serve", "--grpc", "127.0.0.1:0", *arguments, check=False)
    assert done.returncode > 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_server_says_where_it_answers_and_stops_clean(path: Path, tmp_path: Path) -> None:
    with RunningServer(f"words={path}", "--unix", tmp_path / "gatherd.sock") as server:
        for url in (server.http, server.grpc, f"unix://{tmp_path}/gatherd.sock"):
            with Client(url) as client:
                np.testing.assert_array_equal(
                    client.lookup("words", [[4], [20]]), ROWS[[[4], [20]]]
                )
        assert server.stop() == 0
    assert not (tmp_path / "gatherd.sock").exists()


def test_a_taken_http_port_is_named(path: Path) -> None:
    with RunningServer(f"words={path}") as server:
        address = server.http.removeprefix("http://")
        message = start_error(f"words={path}", "--http", address)
    assert f"port {address.split(':')[1]} of 127.0.0.1 is taken" in message
    assert "--http HOST:PORT" in message


def test_a_taken_grpc_port_is_found_although_grpc_would_share_it(path: Path) -> None:
    with RunningServer(f"words={path}") as server:
        address = server.grpc.removeprefix("grpc://")
        message = start_error(f"words={path}", "--http", "127.0.0.1:0", "--grpc", address)
    assert f"port {address.split(':')[1]} of 127.0.0.1 is taken" in message
    assert "--grpc HOST:PORT" in message


def test_a_grpc_port_held_by_a_stranger_is_found(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        port = stranger.getsockname()[1]
        message = start_error(
            f"words={path}", "--http", "127.0.0.1:0", "--grpc", f"127.0.0.1:{port}"
        )
    assert f"port {port} of 127.0.0.1 is taken" in message


def test_a_unix_socket_in_use_is_refused_and_a_stale_one_replaced(
    path: Path, tmp_path: Path
) -> None:
    sock = tmp_path / "s.sock"
    with RunningServer(f"words={path}", "--unix", sock) as server:
        message = start_error(f"words={path}", "--http", "127.0.0.1:0", "--unix", sock)
        assert "is taken by another process" in message
        server.process.kill()
        server.process.wait()
    assert sock.exists()
    with RunningServer(f"words={path}", "--unix", sock), Client(f"unix://{sock}") as client:
        assert client.lookup("words", [1]).shape == (1, 64)


def test_a_data_dir_is_served_by_one_server(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    run_cli("create", "t", "--rows", "3", "--dim", "2", "--data-dir", data_dir)
    with RunningServer("--data-dir", data_dir):
        message = start_error("--http", "127.0.0.1:0", "--data-dir", data_dir)
        assert "is in use by process" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to serve"),
        (("words=absent.npy",), "absent.npy can't be opened: No such file"),
        (("words",), "table 'words' isn't NAME=FILE"),
        (("a b=x.npy",), "'a b' can't name a table"),
        (("--data-dir", "absent"), "data dir absent isn't there"),
        (("w={path}", "w={path}"), "table 'w' is given twice"),
        (("w={path}#x",), "has no tensor 'x' to pick"),
        (("w={path}", "--default-vector", "v={path}"), "names 'v', which is no file table"),
        (("w={path}", "--default-vector", "w={path}"), "isn't a default vector"),
        (("w={path}", "--http", "8000"), "--http '8000' isn't HOST:PORT"),
        (("w={path}", "--http", "no.such.host.invalid:1"), "can't be resolved"),
        (("w={path}", "--workers", "0"), "--workers is 0, and has to be at least 1"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_in_a_line(
    path: Path, arguments: tuple[str, ...], message: str
) -> None:
    told = start_error(
        *(["--http", "127.0.0.1:0"] if "--http" not in arguments else []),
        *(argument.format(path=path) for argument in arguments),
    )
    assert message in told
    assert told.startswith("Error: ")
    assert len(told.strip().splitlines()) == 1


def test_a_data_dir_of_another_format_is_not_served(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    run_cli("create", "t", "--rows", "3", "--dim", "2", "--data-dir", data_dir)
    catalog = json.loads((data_dir / "catalog.json").read_text())
    del catalog["crc32"]
    (data_dir / "catalog.json").write_text(json.dumps({**catalog, "format": 9}))
    message = start_error("--http", "127.0.0.1:0", "--data-dir", data_dir)
    assert "has format 9; this release reads 1" in message


def test_settings_come_from_file_environment_and_command_line(path: Path, tmp_path: Path) -> None:
    config = tmp_path / "gatherd.toml"
    config.write_text(
        f'tables = ["words={path}"]\nids_max = 5\ntables_max = 7\nreply_bytes_max = 2048\n'
    )
    environment = {"GATHERD_CONFIG": str(config), "GATHERD_IDS_MAX": "6", "GATHERD_TABLES_MAX": "8"}
    with RunningServer("--tables-max", "9", environment=environment) as server:
        limits = httpx.get(f"{server.http}/v1/tables").json()["limits"]
    assert (limits["ids_max"], limits["tables_max"], limits["reply_bytes_max"]) == (6, 9, 2048)


def test_a_killed_worker_comes_back_while_the_others_serve(path: Path) -> None:
    with RunningServer(f"words={path}", "--workers", "2") as server:
        before = server.worker_pids()
        assert len(before) == 2
        with Client(server.http) as client:
            for victim in before:
                os.kill(victim, signal.SIGKILL)
                wait_until(partial(is_gone, victim), "the worker is gone")
                for _ in range(50):
                    client.lookup("words", [1, 2, 3])
                wait_until(lambda: len(server.worker_pids()) == 2, "a new worker is there")
        assert not set(before) & set(server.worker_pids())
        server.stop()
    assert "was killed by SIGKILL; a new one starts" in server.log


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_workers_end_when_the_supervisor_is_killed(path: Path) -> None:
    with RunningServer(f"words={path}", "--workers", "2") as server:
        workers = server.worker_pids()
        server.process.kill()
        wait_until(lambda: all(map(is_gone, workers)), "workers are gone")


def test_workers_share_one_copy_of_a_table(tmp_path: Path) -> None:
    size = 256 << 20
    rows = np.lib.format.open_memmap(
        tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(size // 512, 128)
    )
    rows[:] = 1
    rows.flush()
    del rows
    with RunningServer(f"big={tmp_path}/big.npy", "--workers", "3") as server:
        shares = [pss_bytes(pid, "big.npy") for pid in server.worker_pids()]
    assert len(shares) == 3
    assert 0.95 * size < sum(shares) < 1.05 * size
    assert all(0.25 * size < share < 0.42 * size for share in shares)


def test_a_replaced_or_deleted_file_goes_on_also_in_a_worker_that_comes_back(path: Path) -> None:
    with RunningServer(f"words={path}") as server:
        np.save(path.with_name("other.npy"), ROWS + 1)
        path.with_name("other.npy").rename(path)
        with Client(server.http) as client:
            np.testing.assert_array_equal(client.lookup("words", [7]), ROWS[[7]])
            path.unlink()
            (victim,) = server.worker_pids()
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: server.worker_pids() not in ([victim], []), "a new worker")
            np.testing.assert_array_equal(client.lookup("words", [19_999]), ROWS[[19_999]])


def test_a_file_truncated_in_place_costs_its_table_and_not_the_server(
    path: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "good.npy", ROWS[:10])
    with RunningServer(f"words={path}", f"good={tmp_path}/good.npy") as server:
        os.truncate(path, 4096)
        with Client(server.http, retries=0) as client, pytest.raises(Unavailable):
            client.lookup("words", [19_999])
        with Client(server.http, timeout=30) as client:
            np.testing.assert_array_equal(client.lookup("good", [3]), ROWS[[3]])
            with pytest.raises(TableRefused, match="truncated"):
                client.lookup("words", [0])
            refused = {info.name: info.refused for info in client.tables()}
        assert refused["good"] == ""
        assert "truncated" in refused["words"]
        server.stop()
    assert "SIGBUS" in server.log


def send_half(address: tuple[str, int]) -> tuple[socket.socket, bytes]:
    """Open a connection and send a request but for its last byte."""
    body = json.dumps({"ids": list(range(100))}).encode()
    head = (
        f"POST /v1/tables/words:lookup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    sock = socket.create_connection(address, timeout=30)
    sock.sendall(head + body[:-1])
    return sock, body[-1:]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_under_way_when_the_server_stops_are_answered(path: Path, workers: str) -> None:
    with RunningServer(f"words={path}", "--workers", workers) as server:
        host, port = server.http.removeprefix("http://").split(":")
        halves = [send_half((host, int(port))) for _ in range(20)]
        # Each half is known to have been read once a whole request behind it was answered.
        for _ in range(20):
            httpx.get(f"{server.http}/healthz")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not answers((host, int(port))), "new connections are refused")
        for sock, rest in halves:
            sock.sendall(rest)
        for sock, _ in halves:
            reply = b""
            while chunk := sock.recv(65536):
                reply += chunk
            sock.close()
            head, _, body = reply.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["shape"] == [100, 64]
        assert server.stop() == 0


def answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


def test_connections_that_wait_in_the_queue_are_answered_at_the_stop(path: Path) -> None:
    with RunningServer(f"words={path}") as server:
        host, port = server.http.removeprefix("http://").split(":")
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        waiting = []
        for _ in range(50):
            sock, rest = send_half((host, int(port)))
            sock.sendall(rest)
            waiting.append(sock)
        server.process.send_signal(signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        for sock in waiting:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            sock.close()
        assert server.stop() == 0


def test_a_second_signal_ends_a_drain_that_takes_too_long(path: Path) -> None:
    with RunningServer(f"words={path}", "--drain-seconds", "300") as server:
        host, port = server.http.removeprefix("http://").split(":")
        sock, _ = send_half((host, int(port)))
        httpx.get(f"{server.http}/healthz")
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: not answers((host, int(port))), "new connections are refused")
        server.process.send_signal(signal.SIGINT)
        assert server.stop() == 0
        sock.close()


def test_readiness_is_told_apart_from_liveness(path: Path) -> None:
    with RunningServer(f"words={path}") as server:
        assert httpx.get(f"{server.http}/healthz").status_code == 200
        assert httpx.get(f"{server.http}/readyz").status_code == 200


def test_modules_in_the_current_folder_do_not_shadow_the_server(path: Path, tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise SystemExit('shadowed')")
    program = Path(sys.executable).with_name("gatherd")
    server = subprocess.Popen(
        [program, "serve", f"words={path}", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        env=clean_environment(),
    )
    assert server.stdout is not None
    assert server.stdout.readline().startswith(b"gatherd is ready")
    assert len(children(server.pid)) == 1
    server.terminate()
    server.communicate(timeout=30)
