"""Updates through real servers: batches, refusals, a full disk, --durability os, memory."""

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import DiskFull
from gatherd.store.control import BOOT_ID_BYTES, BOOT_ID_OFFSET, CONTROL_NAME
from gatherd_proto.v1 import embedding_pb2, status_pb2, tensor_pb2
from gatherd_server.storage.files import Files
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.types import Push, TableUpdate, UpdateOp, WriterLimits
from gatherd_server.writer.checkpoint import read_checkpoint
from gatherd_server.writer.writer import Writer
from support.server import RunningServer, private_bytes, run_cli

ROWS, DIM = 50, 8
IDS_MAX, REQUEST_BYTES_MAX, TABLES_MAX = 500, 65_536, 3
PUSHERS, ROUNDS = 32, 20
WORKER_BYTES_MAX = 150 << 20


def create(
    data_dir: Path, name: str, *arguments: str, rows: int = ROWS, optimizer: str | None = "sgd"
) -> None:
    trained = () if optimizer is None else ("--optimizer", optimizer)
    run_cli(
        "create", name, "--rows", str(rows), "--dim", str(DIM), "--init", "zeros",
        *trained, *arguments, "--data-dir", data_dir,
    )  # fmt: skip


def frames(data_dir: Path) -> list[int]:
    """How many pushes each frame of the log holds."""
    return [
        len(frame.record.directory["pushes"])
        for frame in LogReader(data_dir / WAL_NAME, read_checkpoint(data_dir).lsn)
        if "pushes" in frame.record.directory
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_pushes_that_come_together_are_committed_together_and_each_counts(
    workers: int, tmp_path: Path
) -> None:
    create(tmp_path, "items")
    together = threading.Barrier(PUSHERS)

    def push(client: Client) -> None:
        for _ in range(ROUNDS):
            together.wait(60)
            client.scatter_add("items", [7], np.ones((1, DIM)))

    with ExitStack() as stack:
        server = stack.enter_context(
            RunningServer("--data-dir", tmp_path, "--workers", str(workers))
        )
        reader = stack.enter_context(Client(server.http))
        clients = [stack.enter_context(Client(server.grpc)) for _ in range(4)]
        with ThreadPoolExecutor(PUSHERS) as pool:
            list(pool.map(push, clients * (PUSHERS // len(clients))))
        np.testing.assert_array_equal(
            reader.lookup("items", [6, 7, 8])[:, 0], [0, PUSHERS * ROUNDS, 0]
        )
        # As it is on the disk while the server runs; the last checkpoint is before all of it.
        counts = frames(tmp_path)
    print(f"\n{sum(counts)} pushes in {len(counts)} frames, at most {max(counts)} in one")
    assert sum(counts) == PUSHERS * ROUNDS
    assert len(counts) < sum(counts) / 2


def test_32_pushes_of_one_batch_are_one_frame_and_add_up_to_32(tmp_path: Path) -> None:
    create(tmp_path, "items")
    gate = threading.Event()
    held = threading.Event()

    def hold() -> None:
        held.set()
        gate.wait(60)

    writer = Writer(tmp_path, Files(), WriterLimits())
    try:
        # Between two batches, so that everything which comes meanwhile is the next one.
        holding = threading.Thread(target=writer.between, args=(hold,))
        holding.start()
        held.wait(60)
        ones = TableUpdate("items", np.array([7]), np.ones((1, DIM), np.float32))
        push = Push(UpdateOp.SCATTER_ADD, (ones,))
        futures = [writer.submit(push, b"") for _ in range(PUSHERS)]
        gate.set()
        lsns = [future.result(60).lsn for future in futures]
        holding.join()
        assert lsns == list(range(lsns[0], lsns[0] + PUSHERS))
        assert frames(tmp_path) == [PUSHERS]
    finally:
        gate.set()
        writer.close()
    with Client(f"local:{tmp_path}") as client:
        np.testing.assert_array_equal(client.lookup("items", [6, 7, 8])[:, 0], [0, PUSHERS, 0])


# Refusals


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data_dir = tmp_path_factory.mktemp("refusals") / "data"
    create(data_dir, "items")
    create(data_dir, "half", "--dtype", "bfloat16")
    create(data_dir, "frozen", optimizer=None)
    limits: tuple[str, ...] = ("--ids-max", str(IDS_MAX), "--tables-max", str(TABLES_MAX))
    limits += ("--request-bytes-max", str(REQUEST_BYTES_MAX))
    with RunningServer("--data-dir", data_dir, "--workers", "2", *limits) as server:
        with Client(server.http) as client:
            for table in ("items", "half"):
                client.assign(table, np.arange(ROWS), np.full((ROWS, DIM), 1e30))
            post(server, "ScatterAdd", request(ONE, idempotency_key="taken"))
        yield server


def update(
    table: str = "items", ids: Any = (3,), values: Any = None, **fields: Any
) -> embedding_pb2.TableUpdate:
    ids = np.asarray(ids, np.int64)
    values = np.ones((*ids.shape, DIM), np.float32) if values is None else np.float32(values)
    return embedding_pb2.TableUpdate(
        table=table, ids=tensor(ids, "INT64"), values=tensor(values, "FLOAT32"), **fields
    )


def tensor(array: Any, dtype: str) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=getattr(tensor_pb2, f"DTYPE_{dtype}"), shape=array.shape, data=array.tobytes()
    )


def request(*updates: embedding_pb2.TableUpdate, **fields: Any) -> embedding_pb2.UpdateRequest:
    return embedding_pb2.UpdateRequest(updates=updates, **fields)


def sequence(session: bytes, number: int) -> embedding_pb2.SessionSequence:
    return embedding_pb2.SessionSequence(session=session, sequence=number)


def post(server: RunningServer, method: str, message: Any) -> httpx.Response:
    """As no SDK would send it: with nothing checked before."""
    return httpx.post(
        f"{server.http}/gatherd.v1.EmbeddingService/{method}",
        content=message.SerializeToString(),
        headers={"Content-Type": "application/proto"},
        timeout=30,
    )


def reason_of(response: httpx.Response) -> str:
    (detail,) = response.json()["details"]
    raw = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    return str(status_pb2.ErrorInfo.FromString(raw).reason)


ONE = update()
NAN = [[0.0] * DIM, [np.nan] + [0.0] * (DIM - 1), [0.0] * DIM, [np.inf] * DIM]
MANY = np.zeros(IDS_MAX + 1, np.int64)
REFUSALS: dict[str, tuple[str, embedding_pb2.UpdateRequest, str, str]] = {
    "nan names its rows": (
        "ApplyGradients", request(update(ids=range(4), values=NAN)),
        "NONFINITE_VALUES", "rows 1, 3",
    ),
    "a row that would be infinite is named": (
        "Assign", request(ONE, update("half", (5, 9), [[3.4e38] * DIM, [1.0] * DIM])),
        "NONFINITE_VALUES", "table 'half': the update would leave NaN or infinity",
    ),
    "a sum that would be infinite": (
        "ScatterAdd", request(update(ids=(4, 4), values=np.full((2, DIM), 3e38))),
        "NONFINITE_VALUES", "in row 4",
    ),
    "a read-only table says how to make it trainable": (
        "ScatterAdd", request(update("frozen")),
        "TABLE_READ_ONLY", "`gatherd set-optimizer frozen sgd` makes it trainable",
    ),
    "another dim": (
        "ScatterAdd", request(update(values=np.ones((1, DIM + 1)))),
        "INVALID_ARGUMENT", f"has dim {DIM}",
    ),
    "an id beyond the table": (
        "ScatterAdd", request(update(ids=(3, ROWS))), "ID_OUT_OF_RANGE", f"[1]={ROWS}",
    ),
    "a request id that is too long": (
        "ScatterAdd", request(ONE, idempotency_key="k" * 256), "INVALID_ARGUMENT", "255",
    ),
    "a session of another length": (
        "ScatterAdd", request(ONE, sequence=sequence(b"s" * 17, 1)),
        "INVALID_ARGUMENT", "17 bytes; it must have 16",
    ),
    "a sequence of a session that nobody knows any more": (
        "ScatterAdd", request(ONE, sequence=sequence(b"s" * 16, 5_000)),
        "REQUEST_ID_STALE", "too old to tell",
    ),
    "an id that belongs to another push": (
        "ScatterAdd", request(update(ids=(2,)), idempotency_key="taken"),
        "REQUEST_ID_REUSED", "'taken' belongs to another update",
    ),
    "the same push by another operation": (
        "Assign", request(ONE, idempotency_key="taken"), "REQUEST_ID_REUSED", "take a new one",
    ),
    "more ids than the server takes": (
        "ScatterAdd", request(update(ids=MANY)), "LIMIT_EXCEEDED", "ids_max",
    ),
    "more bytes than the server takes": (
        "ScatterAdd", request(update(ids=np.zeros(REQUEST_BYTES_MAX // 32, np.int64))),
        "LIMIT_EXCEEDED", "request_bytes_max",
    ),
    "more tables than the server takes": (
        "ScatterAdd", request(*[update(name) for name in ("items", "half", "frozen", "x")]),
        "LIMIT_EXCEEDED", "tables_max",
    ),
    "an unknown table beside known ones": (
        "ScatterAdd", request(ONE, update("half"), update("itmes")),
        "TABLE_NOT_FOUND", "'itmes'",
    ),
    "a read-only table beside others": (
        "Assign", request(ONE, update("half"), update("frozen")), "TABLE_READ_ONLY", "'frozen'",
    ),
    "a version that isn't live": (
        "ScatterAdd", request(update("half"), update(if_version=7)),
        "VERSION_MISMATCH", "version 1 live",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_push_says_why_and_changes_nothing(refusing: RunningServer, case: str) -> None:
    method, message, reason, told = REFUSALS[case]
    with Client(refusing.grpc) as client:
        before = contents(client)
        response = post(refusing, method, message)
        assert reason_of(response) == reason, response.text
        assert told in response.json()["message"]
        assert 400 <= response.status_code < 500
        after = contents(client)
        for table, (lsn, rows) in before.items():
            assert after[table][0] == lsn
            np.testing.assert_array_equal(after[table][1], rows)


def contents(client: Client) -> dict[str, tuple[int, Any]]:
    """LSN and rows of every table."""
    return {
        info.name: (info.lsn, client.lookup(info.name, np.arange(ROWS))) for info in client.tables()
    }


def test_a_session_that_falls_behind_is_told_so(refusing: RunningServer) -> None:
    session = os.urandom(16)
    first = post(refusing, "ScatterAdd", request(ONE, sequence=sequence(session, 1)))
    assert first.status_code == 200, first.text
    ahead = post(refusing, "ScatterAdd", request(ONE, sequence=sequence(session, 1_025)))
    assert ahead.status_code == 200, ahead.text
    again = post(refusing, "ScatterAdd", request(ONE, sequence=sequence(session, 1)))
    assert reason_of(again) == "REQUEST_ID_STALE"
    # Its neighbour is still inside of the window, and was never done.
    late = post(refusing, "ScatterAdd", request(ONE, sequence=sequence(session, 2)))
    assert late.status_code == 200, late.text


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command, so there is no small file system to fill")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here to be filled: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_on_a_full_disk_updates_are_refused_and_lookups_go_on(
    workers: int, small_disk: Path
) -> None:
    data_dir, ballast = small_disk / "data", small_disk / "ballast"
    rows = 20_000
    create(data_dir, "items", rows=rows)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 << 20)
    arguments: tuple[str, ...] = ("--segment-bytes", str(1 << 20), "--checkpoint-seconds", "86400")
    arguments += ("--data-dir", str(data_dir), "--workers", str(workers))
    ids, ones = np.arange(5_000), np.ones((5_000, DIM))
    pushed = 0
    with RunningServer(*arguments) as server, Client(server.http) as client:

        def check() -> None:
            found = client.lookup("items", np.arange(rows))
            np.testing.assert_array_equal(found[:5_000], pushed)
            assert not found[5_000:].any()

        with pytest.raises(DiskFull) as refused:  # noqa: PT012 - which of them is the disk's to say
            for _ in range(200):
                client.scatter_add("items", ids, ones)
                pushed += 1
        assert pushed > 5
        assert "the disk is full" in refused.value.message
        with Client(server.grpc) as other, pytest.raises(DiskFull):
            other.scatter_add("items", ids, ones)
        # Over REST, which has a status for it.
        body = {"ids": ids.tolist(), "values": ones.tolist()}
        response = httpx.post(f"{server.http}/v1/tables/items:scatterAdd", json=body, timeout=30)
        assert response.status_code == 507, response.text
        check()
        _check_create_is_refused(client, data_dir)
        check()
        ballast.unlink()
        for _ in range(5):
            client.scatter_add("items", ids, ones)
            pushed += 1
        client.create_table("more", 1_000, DIM)
        check()
        server.kill()
    assert "SIGBUS" not in server.log
    with RunningServer(*arguments) as server, Client(server.http) as client:
        found = client.lookup("items", ids)
        np.testing.assert_array_equal(found, np.full((5_000, DIM), pushed, np.float32))
        assert server.stop() == 0


def _check_create_is_refused(client: Client, data_dir: Path) -> None:
    """A table that doesn't fit leaves nothing of it behind."""
    with pytest.raises(DiskFull):
        client.create_table("big", 1_000_000, DIM, optimizer="adam")
    assert [info.name for info in client.tables()] == ["items"]
    assert list((data_dir / "staging").iterdir()) == []
    assert [folder.name for folder in (data_dir / "tables").iterdir()] == ["items"]


# --durability os


def test_without_syncs_pushes_survive_every_process_but_not_the_machine(tmp_path: Path) -> None:
    create(tmp_path, "items")
    arguments = ("--data-dir", str(tmp_path), "--durability", "os")

    def push_and_count(server: RunningServer, expected: int) -> None:
        with Client(server.http) as client:
            assert (client.lookup("items", [1]) == expected).all()
            for _ in range(20):
                client.scatter_add("items", [1], np.ones((1, DIM)))

    with RunningServer(*arguments) as server:
        push_and_count(server, 0)
        server.kill()
    with RunningServer(*arguments) as server:
        push_and_count(server, 20)
        server.stop()
    # In good order, so that all is on the disk: the machine may go down.
    boot_elsewhere(tmp_path)
    with RunningServer(*arguments) as server:
        push_and_count(server, 40)
        server.kill()
    boot_elsewhere(tmp_path)
    refused = run_cli("serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *arguments,
                      check=False)  # fmt: skip
    assert refused.returncode == 1
    assert "restore the last snapshot" in refused.stderr
    assert "Traceback" not in refused.stderr


def boot_elsewhere(data_dir: Path) -> None:
    """Make it look as if the last writer ran before the machine was started."""
    with open(data_dir / CONTROL_NAME, "r+b") as control:
        control.seek(BOOT_ID_OFFSET)
        control.write(bytes(BOOT_ID_BYTES))


# Memory


def test_another_worker_costs_little_memory_of_its_own(tmp_path: Path) -> None:
    rows = 400_000
    create(tmp_path, "items", rows=rows, optimizer="adagrad")
    private: dict[int, list[int]] = {}
    writers: dict[int, list[int]] = {}
    for workers in (1, 2, 3):
        with RunningServer("--data-dir", tmp_path, "--workers", str(workers)) as server:
            _work(server, rows)
            private[workers] = [private_bytes(pid) for pid in server.worker_pids()]
            writers[workers] = [private_bytes(pid) for pid in server.writer_pids()]
    told = {
        workers: ([f"{b >> 20} MB" for b in private[workers]], [b >> 20 for b in writers[workers]])
        for workers in private
    }
    print(f"\nprivate memory of workers and the writer, by number of workers: {told}")
    assert max(*private[2], *private[3]) <= WORKER_BYTES_MAX
    assert sum(private[3]) - sum(private[2]) <= WORKER_BYTES_MAX


def _work(server: RunningServer, rows: int) -> None:
    """Lookups, bags and pushes, from several connections a wire."""
    rng = np.random.default_rng(1)

    def run(url: str) -> None:
        with Client(url) as client:
            for _ in range(10):
                ids = rng.integers(0, rows, 4_000)
                client.lookup("items", ids)
                client.lookup_bags("items", ids, np.arange(0, 4_000, 20))
                client.apply_gradients("items", ids, np.ones((4_000, DIM)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, [server.http, server.grpc] * 4))
