"""What gatherd is compared with, the serving end: `peer_servers.py KIND WEIGHTS.npy`.

Prints the port it listens on and serves until its standard input closes. Each is what somebody
would write who knows the library, no more:

    flight      Arrow Flight: ids in a batch or in a ticket, rows in a fixed-size binary column
    grpcio      grpcio, unary, a protobuf message with one bytes field, limits on messages lifted
    floor       one blocking socket: a length and ids in, a length and rows out; no protocol
    floor-http  a uvloop protocol that answers HTTP without reading it, but for the ids at the end

All take rows by `np.take` with `out` and `mode="clip"`, its fastest form, from the mapped file. The
floors also reuse their buffers and have malloc tuned, which nobody's server can do better.
"""

import asyncio
import mmap
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Announce = Callable[[int], None]
LENGTH = struct.Struct("<Q")
IDS_MAX = 16_384


def load(path: Path) -> Rows:
    """The rows, mapped and every page there."""
    rows: Rows = np.load(path, mmap_mode="r")
    mapping: mmap.mmap = rows._mmap  # type: ignore[attr-defined]  # noqa: SLF001  # np.load's
    mapping.madvise(22)  # MADV_POPULATE_READ
    return rows


def take(rows: Rows, ids: NDArray[np.int64], out: Rows | None = None) -> Rows:
    """The rows of ids, in a new array or in the first rows of `out`."""
    target = np.empty((ids.size, rows.shape[1]), np.float32) if out is None else out[: ids.size]
    return np.take(rows, ids, axis=0, out=target, mode="clip")


def serve_flight(rows: Rows, announce: Announce) -> None:
    """Arrow Flight."""
    import pyarrow as pa
    from pyarrow import flight

    binary = pa.binary(rows.shape[1] * 4)
    schema = pa.schema([("rows", binary)])

    def batch(ids: NDArray[np.int64]) -> Any:
        buffer = pa.py_buffer(take(rows, ids))
        column = pa.FixedSizeBinaryArray.from_buffers(binary, ids.size, [None, buffer])
        return pa.RecordBatch.from_arrays([column], schema=schema)

    class Gather(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
        def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
            writer.begin(schema)
            for chunk in reader:
                writer.write_batch(batch(chunk.data.column(0).to_numpy()))

        def do_get(self, context: Any, ticket: Any) -> Any:
            one = batch(np.frombuffer(ticket.ticket, np.int64))
            return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, [one]))

    server = Gather("grpc://127.0.0.1:0")
    announce(server.port)
    server.serve()


def serve_grpcio(rows: Rows, announce: Announce) -> None:
    """grpcio's sync server."""
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    def lookup(request: Any, context: Any) -> Any:
        return BytesValue(value=take(rows, np.frombuffer(request.value, np.int64)).tobytes())

    handler = grpc.unary_unary_rpc_method_handler(
        lookup, BytesValue.FromString, BytesValue.SerializeToString
    )
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), options=limits)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Gather", {"Lookup": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    announce(port)
    server.wait_for_termination()


def serve_floor(rows: Rows, announce: Announce) -> None:
    """A blocking socket, one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    announce(listener.getsockname()[1])
    out = np.zeros((IDS_MAX, rows.shape[1]), np.float32)
    received = bytearray(8 + IDS_MAX * 8)
    view = memoryview(received)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while count := connection.recv_into(view):
                while count < 8 or count < 8 + LENGTH.unpack_from(received)[0]:
                    count += connection.recv_into(view[count:])
                ids = np.frombuffer(received, np.int64, (count - 8) // 8, 8)
                reply = take(rows, ids, out).data.cast("B")
                send_all(connection, LENGTH.pack(len(reply)), reply)


def send_all(connection: socket.socket, head: bytes, body: memoryview) -> None:
    """Both, in as few calls as the socket takes them."""
    sent = connection.sendmsg([head, body]) - len(head)
    if sent < len(body):
        connection.sendall(body[max(sent, 0) :])


def serve_floor_http(rows: Rows, announce: Announce) -> None:
    """A uvloop protocol for requests of one size a connection, each sent after a reply."""
    import uvloop

    class Floor(asyncio.Protocol):
        """Its first request tells where bodies begin and how long they are."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.received = b""
            self.begin = self.size = 0

        def data_received(self, data: bytes) -> None:
            self.received = self.received + data if self.received else data
            if not self.begin:
                self.begin = self.received.find(b"\r\n\r\n") + 4
                head = self.received[: self.begin].lower()
                at = head.find(b"content-length:")
                if self.begin < 4 or at < 0:
                    self.begin = 0
                    return
                self.size = self.begin + int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.received) < self.size:
                return
            reply = take(rows, np.frombuffer(self.received, np.int64, -1, self.begin))
            self.received = b""
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % reply.nbytes
            if reply.nbytes <= 1 << 20:
                self.transport.write(head + reply.data.cast("B"))
            else:
                self.transport.writelines([head, reply.data.cast("B")])

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", 0)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


KINDS = {
    "flight": serve_flight,
    "grpcio": serve_grpcio,
    "floor": serve_floor,
    "floor-http": serve_floor_http,
}


def announce(port: int) -> None:
    """Tell who started this where to connect; end when they do."""
    print(port, flush=True)

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Serve."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    if kind.startswith("floor"):
        from gatherd.store.memory import tune_allocator

        tune_allocator()
    KINDS[kind](load(path), announce)


if __name__ == "__main__":
    main()
