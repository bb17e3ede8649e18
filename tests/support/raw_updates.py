"""Updates that no SDK would send, unchecked: over Connect and over gRPC."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np

from gatherd_proto.v1 import embedding_pb2, status_pb2, tensor_pb2
from support.server import RunningServer

SERVICE = "gatherd.v1.EmbeddingService"
TIMEOUT_SECONDS = 30
WIRES = ("http", "grpc")


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that is an error; `reason` is empty if gRPC itself refused."""

    code: str
    reason: str
    message: str


class RawUpdates:
    """Sends messages to a server; `raw_updates` makes it."""

    def __init__(self, server: RunningServer, http: httpx.Client, channel: grpc.Channel) -> None:
        self._url = server.http
        self._http = http
        self._channel = channel

    def send(
        self, wire: str, method: str, message: embedding_pb2.UpdateRequest
    ) -> embedding_pb2.UpdateResponse | Refused:
        """Send it over "http" or "grpc"; returns the answer, good or bad."""
        body = message.SerializeToString()
        return self._send_http(method, body) if wire == "http" else self._send_grpc(method, body)

    def _send_http(self, method: str, body: bytes) -> embedding_pb2.UpdateResponse | Refused:
        response = self._http.post(
            f"{self._url}/{SERVICE}/{method}",
            content=body,
            headers={"Content-Type": "application/proto"},
        )
        if response.status_code == 200:
            return embedding_pb2.UpdateResponse.FromString(response.content)
        document = response.json()
        detail = document["details"][0]
        raw = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        return Refused(
            document["code"], status_pb2.ErrorInfo.FromString(raw).reason, document["message"]
        )

    def _send_grpc(self, method: str, body: bytes) -> embedding_pb2.UpdateResponse | Refused:
        call: Any = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return embedding_pb2.UpdateResponse.FromString(call(body, timeout=TIMEOUT_SECONDS))
        except grpc.RpcError as error:
            told: Any = error
        reason = ""
        trailers = dict(told.trailing_metadata() or ())
        if "grpc-status-details-bin" in trailers:
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            reason = status_pb2.ErrorInfo.FromString(status.details[0].value).reason
        return Refused(told.code().name.lower(), reason, told.details())


@contextmanager
def raw_updates(server: RunningServer) -> Iterator[RawUpdates]:
    """Connections to `server` for the length of a `with` block."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = server.grpc.removeprefix("grpc://")
    with (
        httpx.Client(timeout=TIMEOUT_SECONDS) as http,
        grpc.insecure_channel(address, options=options) as channel,
    ):
        yield RawUpdates(server, http, channel)


def update(table: str, ids: Any, values: Any, **fields: Any) -> embedding_pb2.TableUpdate:
    """One table's part: int64 `ids` of shape S, float32 `values`, S + (dim,)."""
    return embedding_pb2.TableUpdate(
        table=table,
        ids=_tensor(np.asarray(ids, np.int64), tensor_pb2.DTYPE_INT64),
        values=_tensor(np.asarray(values, np.float32), tensor_pb2.DTYPE_FLOAT32),
        **fields,
    )


def request(*updates: embedding_pb2.TableUpdate, **fields: Any) -> embedding_pb2.UpdateRequest:
    """A push; `fields` are its request id, if any."""
    return embedding_pb2.UpdateRequest(updates=updates, **fields)


def sequence(session: bytes, number: int) -> embedding_pb2.SessionSequence:
    """A request id as the SDK draws them."""
    return embedding_pb2.SessionSequence(session=session, sequence=number)


def _tensor(array: Any, dtype: tensor_pb2.DType) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())
