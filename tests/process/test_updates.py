"""Updates through real servers: batches, refusals, a full disk."""

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import DiskFull
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.storage.files import Files
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.types import Push, TableUpdate, UpdateOp, WriterLimits
from gatherd_server.writer.writer import Writer
from support import raw_updates
from support.raw_updates import WIRES, RawUpdates, Refused, request, sequence
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 50, 8
IDS_MAX, REQUEST_BYTES_MAX, TABLES_MAX = 5_000, 250_000, 3
SEGMENT_BYTES = 1 << 20
PUSHERS, ROUNDS = 32, 10


def frames(data_dir: Path, above_lsn: int = 0) -> list[int]:
    """How many pushes each frame of the log holds."""
    return [
        len(frame.record.directory["pushes"])
        for frame in LogReader(data_dir / WAL_NAME, above_lsn)
        if "pushes" in frame.record.directory
    ]


class Served:
    """A server that several tests share."""

    def __init__(self, data_dir: Path, server: RunningServer, raw: RawUpdates) -> None:
        self.data_dir = data_dir
        self.server = server
        self.raw = raw


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    data_dir = tmp_path_factory.mktemp("updates") / "data"
    make_data_dir(
        data_dir,
        *(drawn_table(name, ROWS, DIM) for name in ("items", "sums", "filling")),
        drawn_table("half", ROWS, DIM, dtype="bfloat16"),
        drawn_table("frozen", ROWS, DIM, optimizer=None),
    )
    limits: tuple[str, ...] = ("--ids-max", str(IDS_MAX), "--tables-max", str(TABLES_MAX))
    limits += ("--request-bytes-max", str(REQUEST_BYTES_MAX))
    limits += ("--segment-bytes", str(SEGMENT_BYTES), "--checkpoint-seconds", "86400")
    workers = ("--workers", str(request.param))
    with (
        RunningServer("--data-dir", data_dir, *workers, *limits) as server,
        raw_updates.raw_updates(server) as raw,
    ):
        with Client(server.http) as client:
            for table in ("items", "half"):
                client.assign(table, np.arange(ROWS), np.full((ROWS, DIM), 1e30))
        taken = raw.send("http", "ScatterAdd", raw_updates.request(ONE, idempotency_key="taken"))
        assert not isinstance(taken, Refused)
        yield Served(data_dir, server, raw)


def test_pushes_that_come_together_are_committed_together_and_each_counts(served: Served) -> None:
    together = threading.Barrier(PUSHERS)

    def push(client: Client) -> None:
        for _ in range(ROUNDS):
            together.wait(60)
            client.scatter_add("sums", [7], np.ones((1, DIM)))

    with ExitStack() as stack:
        reader = stack.enter_context(Client(served.server.http))
        before = reader.table("sums").lsn
        clients = [stack.enter_context(Client(served.server.grpc)) for _ in range(4)]
        with ThreadPoolExecutor(PUSHERS) as pool:
            list(pool.map(push, clients * (PUSHERS // len(clients))))
        found = reader.lookup("sums", [6, 7, 8])[:, 0]
    np.testing.assert_array_equal(found, [0, PUSHERS * ROUNDS, 0])
    # As it is on the disk while the server runs.
    counts = frames(served.data_dir, before)
    print(f"\n{sum(counts)} pushes in {len(counts)} frames, at most {max(counts)} in one")
    assert sum(counts) == PUSHERS * ROUNDS
    assert len(counts) < sum(counts) / 2


def test_32_pushes_of_one_batch_are_one_frame_and_add_up_to_32(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("items", ROWS, DIM))
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
        futures = [writer.submit(plus_one("items", 7), b"") for _ in range(PUSHERS)]
        gate.set()
        lsns = [future.result(60).lsn for future in futures]
        holding.join()
        assert lsns == list(range(lsns[0], lsns[0] + PUSHERS))
        assert frames(tmp_path, lsns[0] - 1) == [PUSHERS]
    finally:
        gate.set()
        writer.close()
    with Client(f"local:{tmp_path}") as client:
        np.testing.assert_array_equal(client.lookup("items", [6, 7, 8])[:, 0], [0, PUSHERS, 0])


def test_a_push_over_json_is_the_same_push_over_any_wire(served: Served) -> None:
    ones = np.ones((1, DIM), np.float32)
    # 0.1 isn't a float32, in which messages have it.
    first = httpx.post(
        f"{served.server.http}/v1/tables/sums:applyGradients",
        json={"ids": [4], "values": ones.tolist(), "lr": 0.1},
        headers={"Idempotency-Key": "over-json"},
    ).json()
    for url in (served.server.http, served.server.grpc, f"local:{served.data_dir}"):
        with Client(url) as client:
            again = client.apply_gradients("sums", [4], ones, lr=0.1, idempotency_key="over-json")
            assert again.lsn == first["lsn"]


def plus_one(table: str, row: int) -> Push:
    ones = TableUpdate(table, np.array([row]), np.ones((1, DIM), np.float32))
    return Push(UpdateOp.SCATTER_ADD, (ones,))


# Refusals


def update(
    table: str = "items", ids: Any = (3,), values: Any = None, **fields: Any
) -> embedding_pb2.TableUpdate:
    values = np.ones((len(ids), DIM)) if values is None else values
    return raw_updates.update(table, ids, values, **fields)


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
        "TABLE_READ_ONLY", "`gatherd set-optimizer frozen none` makes it take them",
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
def test_a_refused_push_says_why_and_changes_nothing(served: Served, case: str) -> None:
    method, message, reason, told = REFUSALS[case]
    with Client(served.server.grpc) as client:
        before = contents(client)
        for wire in WIRES:
            refused = served.raw.send(wire, method, message)
            assert isinstance(refused, Refused), wire
            if wire == "grpc" and case == "more bytes than the server takes":
                # By grpcio, before any of it reaches us.
                assert refused.code == "resource_exhausted"
            else:
                assert refused.reason == reason, (wire, refused)
                assert told in refused.message, wire
            after = contents(client)
            for table, (lsn, rows) in before.items():
                assert after[table][0] == lsn, wire
                np.testing.assert_array_equal(after[table][1], rows, wire)


def contents(client: Client) -> dict[str, tuple[int, Any]]:
    """LSN and rows of every table."""
    return {
        info.name: (info.lsn, client.lookup(info.name, np.arange(ROWS))) for info in client.tables()
    }


@pytest.mark.parametrize("wire", WIRES)
def test_a_session_that_falls_behind_is_told_so(served: Served, wire: str) -> None:
    session = os.urandom(16)

    def push(number: int) -> embedding_pb2.UpdateResponse | Refused:
        message = request(ONE, sequence=sequence(session, number))
        return served.raw.send(wire, "ScatterAdd", message)

    assert not isinstance(push(1), Refused)
    assert not isinstance(push(1_025), Refused)
    again = push(1)
    assert isinstance(again, Refused)
    assert again.reason == "REQUEST_ID_STALE"
    # Its neighbour is still inside of the window, and was never done.
    assert not isinstance(push(2), Refused)


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


def test_on_a_full_disk_updates_are_refused_and_lookups_go_on(small_disk: Path) -> None:
    data_dir, ballast = small_disk / "data", small_disk / "ballast"
    rows = 20_000
    make_data_dir(data_dir, drawn_table("items", rows, DIM))
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 << 20)
    arguments: tuple[str, ...] = ("--segment-bytes", str(1 << 20), "--checkpoint-seconds", "86400")
    arguments += ("--data-dir", str(data_dir))
    ids, ones = np.arange(5_000), np.ones((5_000, DIM))
    with (
        RunningServer(*arguments, "--workers", "2") as server,
        Client(server.http) as client,
    ):
        pushed = push_until_full(client, "items", ids, ones)
        assert pushed > 5
        check_refused_everywhere(server, "items", ids, ones)
        found = client.lookup("items", np.arange(rows))
        np.testing.assert_array_equal(found[:5_000], pushed)
        assert not found[5_000:].any()
        _check_create_is_refused(client, data_dir)
        ballast.unlink()
        for _ in range(5):
            client.scatter_add("items", ids, ones)
            pushed += 1
        client.create_table("more", 1_000, DIM)
        np.testing.assert_array_equal(client.lookup("items", ids), np.full_like(ones, pushed))
        server.kill()
    assert "SIGBUS" not in server.log
    with RunningServer(*arguments) as server, Client(server.http) as client:
        np.testing.assert_array_equal(client.lookup("items", ids), np.full_like(ones, pushed))
        assert server.stop() == 0


def test_where_files_may_not_grow_it_is_as_on_a_full_disk(served: Served) -> None:
    """What can be tested of it anywhere: a limit of the writer's process, not of its disk."""
    ids, ones = np.arange(ROWS).repeat(30), np.ones((30 * ROWS, DIM))
    with Client(served.server.http) as client:
        with files_limited(served, SEGMENT_BYTES - 1):
            pushed = push_until_full(client, "filling", ids, ones)
            check_refused_everywhere(served.server, "filling", ids, ones)
            with pytest.raises(DiskFull):
                client.create_table("big", SEGMENT_BYTES, DIM, optimizer="adam")
            found = client.lookup("filling", [0, ROWS - 1])
            assert (found == 30 * pushed).all()
        client.scatter_add("filling", ids, ones)
        assert (client.lookup("filling", [0, ROWS - 1]) == 30 * (pushed + 1)).all()
        assert "big" not in [info.name for info in client.tables()]
    assert not (served.data_dir / "tables/big").exists()
    assert list((served.data_dir / "staging").iterdir()) == []


def push_until_full(client: Client, table: str, ids: Any, values: Any) -> int:
    """How many pushes the disk had room for."""
    for count in range(2_000):
        try:
            client.scatter_add(table, ids, values)
        except DiskFull as error:
            assert "disk is full" in error.message or "may not grow" in error.message  # noqa: PT017
            return count
    raise AssertionError("the disk takes it all")


def fill_the_rest(server: RunningServer, table: str) -> None:
    """Fill what is left of the segment: a frame without a request id, of a row, is the smallest."""
    nothing = {"ids": [0], "values": [[0.0] * DIM]}
    for _ in range(5_000):
        response = httpx.post(f"{server.http}/v1/tables/{table}:scatterAdd", json=nothing)
        if response.status_code == 507:
            return
        assert response.status_code == 200, response.text
    raise AssertionError("the segment takes it all")


def check_refused_everywhere(server: RunningServer, table: str, ids: Any, values: Any) -> None:
    # What is left may be too little for the SDK's frame and enough for one without a request id.
    fill_the_rest(server, table)
    for url in (server.http, server.grpc):
        with Client(url) as client, pytest.raises(DiskFull):
            client.scatter_add(table, ids, values)
    # Over REST, which has a status for it.
    body = {"ids": ids.tolist(), "values": values.tolist()}
    response = httpx.post(f"{server.http}/v1/tables/{table}:scatterAdd", json=body, timeout=30)
    assert response.status_code == 507, response.text


@contextmanager
def files_limited(served: Served, byte_count: int) -> Iterator[None]:
    """Let the process with the writer write no file beyond `byte_count` bytes."""
    (writer,) = served.server.writer_pids() or served.server.worker_pids()
    _, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    before = resource.prlimit(writer, resource.RLIMIT_FSIZE, (byte_count, hard))
    try:
        yield
    finally:
        resource.prlimit(writer, resource.RLIMIT_FSIZE, before)


def _check_create_is_refused(client: Client, data_dir: Path) -> None:
    """A table that doesn't fit leaves nothing of it behind."""
    with pytest.raises(DiskFull):
        client.create_table("big", 1_000_000, DIM, optimizer="adam")
    assert [info.name for info in client.tables()] == ["items"]
    assert list((data_dir / "staging").iterdir()) == []
    assert [folder.name for folder in (data_dir / "tables").iterdir()] == ["items"]
