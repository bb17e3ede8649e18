"""A stand-in server that takes updates, and remembers them as the real one does."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.fakes import FakeService, wire_array, wire_keys
from gatherd import RequestIdReused, RequestIdStale, Unavailable
from gatherd.store.keys import StringKeys
from gatherd_proto.v1 import embedding_pb2, table_pb2, tensor_pb2

SEQUENCES_MAX = 1024


@dataclass
class UpdatedService(FakeService):
    """`lost` answers are dropped after the work was done, as by a connection that breaks."""

    pushes: list[embedding_pb2.UpdateRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    changes: list[Any] = field(default_factory=list)
    done: dict[Any, tuple[bytes, Any]] = field(default_factory=dict)
    lost: int = 0
    lsn: int = 100
    sessions: set[bytes] = field(default_factory=set)
    lock: Any = field(default_factory=threading.Lock)

    def _reply(self, method: str, body: bytes) -> Any:
        if method in ("ScatterAdd", "ApplyGradients", "Assign", "DeleteRows"):
            with self.lock:
                reply: Any = self._push(method, body)
        elif method in REQUESTS:
            request = REQUESTS[method].FromString(body)
            self.changes.append(request)
            self.lsn += 1
            if method == "Snapshot":
                reply = table_pb2.SnapshotResponse(path=f"/snapshots/{request.name}", lsn=self.lsn)
            else:
                reply = table_pb2.ChangeResponse(version=self.version, lsn=self.lsn)
        else:
            return super()._reply(method, body)
        if self.lost:
            self.lost -= 1
            raise Unavailable("the answer got lost", {"outcome": "unknown"})
        return reply

    def _info(self, name: str) -> table_pb2.Table:
        info = super()._info(name)
        info.versions.extend([self.version - 2, self.version])
        info.optimizer.name = "adagrad"
        info.optimizer.options["lr"] = 0.5
        info.trainable, info.lsn = True, self.lsn
        return info

    def _push(self, method: str, body: bytes) -> embedding_pb2.UpdateResponse:
        request = embedding_pb2.UpdateRequest.FromString(body)
        self.pushes.append(request)
        self.bodies.append(body)
        request_id = self._request_id(request)
        if request_id in self.done:
            first, reply = self.done[request_id]
            if first != body:
                raise RequestIdReused("the id is another push's")
            return embedding_pb2.UpdateResponse.FromString(reply.SerializeToString())
        for update in request.updates:
            self._apply(method, update)
        self.lsn += 1
        versions = [self.version] * len(request.updates)
        reply = embedding_pb2.UpdateResponse(lsn=self.lsn, versions=versions)
        self.done[request_id] = (body, reply)
        return reply

    def _request_id(self, request: embedding_pb2.UpdateRequest) -> Any:
        kind = request.WhichOneof("request_id")
        assert kind is not None
        if kind == "idempotency_key":
            return request.idempotency_key
        name, sequence = request.sequence.session, request.sequence.sequence
        assert len(name) == 16
        if sequence > SEQUENCES_MAX and name not in self.sessions:
            raise RequestIdStale(f"sequence {sequence} of a session that isn't known")
        self.sessions.add(name)
        return name, sequence

    def _apply(self, method: str, update: embedding_pb2.TableUpdate) -> None:
        weights = self._table(update.table)
        rows, values = self._asked(update), wire_values(update.values)
        assert values.shape == (*rows.shape, weights.shape[1])
        flat = values.reshape(rows.size, weights.shape[1])
        if method == "Assign":
            for row, value in zip(rows.reshape(-1), flat, strict=True):
                weights[row] = value
        else:
            lr = update.learning_rate if update.HasField("learning_rate") else 0.5
            np.add.at(weights, rows.reshape(-1), flat if method == "ScatterAdd" else -lr * flat)

    def _asked(self, update: embedding_pb2.TableUpdate) -> NDArray[Any]:
        if update.WhichOneof("rows") == "ids":
            return wire_array(update.ids)
        keys = wire_keys(update.keys)
        own = self._own_keys(update.table)
        flat = keys.tolist() if isinstance(keys, StringKeys) else keys.reshape(-1).tolist()
        return np.array([own.index(key) for key in flat], int).reshape(keys.shape)


REQUESTS: dict[str, Any] = {
    "CreateTable": table_pb2.CreateTableRequest,
    "DeleteTable": table_pb2.DeleteTableRequest,
    "Publish": table_pb2.PublishRequest,
    "Rollback": table_pb2.RollbackRequest,
    "SetOptimizer": table_pb2.SetOptimizerRequest,
    "Snapshot": table_pb2.SnapshotRequest,
}


def wire_values(tensor: tensor_pb2.Tensor) -> NDArray[np.float32]:
    """An update's values, widened."""
    shape = tuple(tensor.shape)
    if tensor.dtype == tensor_pb2.DTYPE_BFLOAT16:
        bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    dtype = {tensor_pb2.DTYPE_FLOAT32: "<f4", tensor_pb2.DTYPE_FLOAT16: "<f2"}[tensor.dtype]
    return np.frombuffer(tensor.data, dtype).astype(np.float32).reshape(shape)


def ids_of(service: UpdatedService) -> list[tuple[bytes, int]]:
    """The ids that the pushes came with, in order."""
    return [(push.sequence.session, push.sequence.sequence) for push in service.pushes]
