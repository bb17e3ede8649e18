"""What gatherd is compared with, the asking end; peer_servers.py is the other.

Each peer is started here, on ephemeral ports of 127.0.0.1, and stopped with whoever asked for it.
What isn't installed is left out, with a reason that the report prints.
"""

import importlib.util
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.harness import Call, Ids, Plan

REDIS: Final = "Redis MGET, redis-py + hiredis"
FLIGHT_EXCHANGE: Final = "Arrow Flight do_exchange"
FLIGHT_GET: Final = "Arrow Flight do_get"
GRPCIO: Final = "plain grpcio, protobuf bytes"
FLOOR: Final = "floor: bare socket, buffers reused"
FLOOR_FRESH: Final = "floor, a new array each time"
PEERS: Final = (REDIS, FLIGHT_EXCHANGE, FLIGHT_GET, GRPCIO)

_LENGTH = struct.Struct("<Q")
_START_SECONDS = 60.0
_REDIS_BLOCK = 10_000


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's port and its process."""

    port: int
    pid: int


# --- starting them ---


def missing() -> dict[str, str]:
    """By peer, why it can't take part."""
    reasons = {}
    if shutil.which("redis-server") is None:
        reasons["redis"] = "Redis: no redis-server here (apt-get install redis-server)"
    elif importlib.util.find_spec("hiredis") is None or importlib.util.find_spec("redis") is None:
        reasons["redis"] = "Redis: the packages redis and hiredis aren't installed (use make bench)"
    if importlib.util.find_spec("pyarrow") is None:
        reasons["flight"] = "Arrow Flight: pyarrow isn't installed (use make bench)"
    return reasons


@contextmanager
def serving(kind: str, weights: Path) -> Iterator[Peer]:
    """One of peer_servers.py, over the rows of a .npy."""
    script = Path(__file__).with_name("peer_servers.py")
    with subprocess.Popen(
        [sys.executable, script, kind, weights],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"the peer {kind} didn't start")
            yield Peer(int(line), process.pid)
        finally:
            process.kill()


@contextmanager
def redis(folder: Path, *options: str) -> Iterator[Peer]:
    """An empty redis-server that keeps nothing, unless options say so."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(folder), "--loglevel", "warning", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            yield Peer(port, process.pid)
        finally:
            process.kill()


def wait_for_port(port: int) -> None:
    """Until somebody listens."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def loaded_redis(plan: Plan) -> Iterator[Peer]:
    """A redis-server with every row of the big table; see `load_rows`."""
    with redis(plan.folder, "--appendonly", "no") as peer:
        load_rows(peer.port, plan.rows_array())
        yield peer


def load_rows(port: int, rows: NDArray[np.float32]) -> None:
    """Set every row in Redis, under keys of 12 digits, as redis-benchmark draws them."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for start in range(0, len(rows), _REDIS_BLOCK):
            _set_rows(connection, start, rows[start : start + _REDIS_BLOCK])


def _set_rows(connection: socket.socket, start: int, rows: NDArray[np.float32]) -> None:
    """A SET for each row, pipelined; all have the same length, so NumPy can write them."""
    row_bytes = rows.shape[1] * 4
    key = b"*3\r\n$3\r\nSET\r\n$12\r\n"
    value = b"\r\n$%d\r\n" % row_bytes
    at = len(key) + 12 + len(value)
    commands = np.empty((len(rows), at + row_bytes + 2), np.uint8)
    commands[:, : len(key)] = np.frombuffer(key, np.uint8)
    numbers = np.arange(start, start + len(rows))[:, None]
    commands[:, len(key) : len(key) + 12] = numbers // 10 ** np.arange(11, -1, -1) % 10 + 48
    commands[:, len(key) + 12 : at] = np.frombuffer(value, np.uint8)
    commands[:, at:-2] = rows.view(np.uint8)
    commands[:, -2:] = np.frombuffer(b"\r\n", np.uint8)
    connection.sendall(commands.data)
    left = len(b"+OK\r\n") * len(rows)
    while left:
        reply = connection.recv(min(left, 1 << 16))
        if not reply or b"-" in reply:
            raise AssertionError(f"Redis didn't take the rows: {reply[:200]!r}")
        left -= len(reply)


@contextmanager
def all_serving(plan: Plan) -> Iterator[tuple[dict[str, Peer], list[str]]]:
    """Every peer by kind, and why some are missing."""
    reasons = missing()
    with ExitStack() as stack:
        kinds = [kind for kind in ("flight", "grpcio", "floor") if kind not in reasons]
        peers = {kind: stack.enter_context(serving(kind, plan.weights)) for kind in kinds}
        if "redis" not in reasons:
            peers["redis"] = stack.enter_context(loaded_redis(plan))
        yield peers, list(reasons.values())


# --- asking them ---


def calls(ports: Mapping[str, int], dim: int, stack: ExitStack) -> dict[str, Call]:
    """A call for each peer that is there; `stack` closes what they open."""
    made: dict[str, Call] = {}
    if "redis" in ports:
        made[REDIS] = _redis_call(redis_client(ports["redis"], stack), dim)
    if "flight" in ports:
        made |= _flight_calls(ports["flight"], dim, stack)
    if "grpcio" in ports:
        made[GRPCIO] = _grpcio_call(ports["grpcio"], dim, stack)
    if "floor" in ports:
        # One connection: the server takes one at a time.
        made |= _floor_calls(ports["floor"], dim, stack)
    return made


def kind_of(name: str) -> str:
    """The kind of server that a call of this name asks."""
    kinds = {REDIS: "redis", GRPCIO: "grpcio", FLOOR: "floor", FLOOR_FRESH: "floor"}
    return kinds.get(name, "flight" if name.startswith("Arrow") else name)


def short(name: str) -> str:
    """A peer's name without how it is asked."""
    return name.partition(",")[0].replace("MGET", "").replace("Arrow ", "").strip()


def redis_keys(ids: Ids) -> list[bytes]:
    """As `loaded_redis` named the rows."""
    return [b"%012d" % one for one in ids.tolist()]


def redis_client(port: int, stack: ExitStack) -> Any:
    """redis-py's client with one connection, its fastest."""
    import redis as redis_py

    client: Any = redis_py.Redis(port=port, single_connection_client=True)
    stack.callback(client.close)
    return client


def _redis_call(client: Any, dim: int) -> Call:
    def call(ids: Ids) -> NDArray[np.float32]:
        values = client.mget(redis_keys(ids))
        return np.frombuffer(b"".join(values), np.float32).reshape(-1, dim)

    return call


def _flight_calls(port: int, dim: int, stack: ExitStack) -> dict[str, Call]:
    import pyarrow as pa
    from pyarrow import flight

    client: Any = flight.connect(f"grpc://127.0.0.1:{port}")
    stack.callback(client.close)
    schema = pa.schema([("ids", pa.int64())])
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path(b"t"))
    stack.callback(writer.close)
    writer.begin(schema)

    def array(batch: Any) -> NDArray[np.float32]:
        rows = np.frombuffer(batch.column(0).buffers()[1], np.float32)
        return rows[: batch.num_rows * dim].reshape(-1, dim)

    def exchange(ids: Ids) -> NDArray[np.float32]:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array(ids)], schema=schema))
        return array(reader.read_chunk().data)

    def get(ids: Ids) -> NDArray[np.float32]:
        return array(client.do_get(flight.Ticket(ids.tobytes())).read_chunk().data)

    return {FLIGHT_EXCHANGE: exchange, FLIGHT_GET: get}


def _grpcio_call(port: int, dim: int, stack: ExitStack) -> Call:
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=limits))
    method = channel.unary_unary(
        "/bench.Gather/Lookup", BytesValue.SerializeToString, BytesValue.FromString
    )

    def call(ids: Ids) -> NDArray[np.float32]:
        reply = method(BytesValue(value=ids.tobytes()))
        return np.frombuffer(reply.value, np.float32).reshape(-1, dim)

    return call


def _floor_calls(port: int, dim: int, stack: ExitStack) -> dict[str, Call]:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kept: dict[int, memoryview] = {}

    def receive(ids: Ids, view: memoryview) -> NDArray[np.float32]:
        connection.sendall(_LENGTH.pack(ids.nbytes) + ids.tobytes())
        count = connection.recv_into(view, 0, socket.MSG_WAITALL)
        while count < len(view):
            count += connection.recv_into(view[count:], 0, socket.MSG_WAITALL)
        return np.frombuffer(view, np.float32, offset=8).reshape(-1, dim)

    def reused(ids: Ids) -> NDArray[np.float32]:
        view = kept.get(ids.size)
        if view is None:
            view = kept[ids.size] = np.zeros(8 + ids.size * dim * 4, np.uint8).data
        return receive(ids, view)

    def fresh(ids: Ids) -> NDArray[np.float32]:
        return receive(ids, np.empty(8 + ids.size * dim * 4, np.uint8).data)

    return {FLOOR: reused, FLOOR_FRESH: fresh}
