"""The surfaces that carry the messages of the generated classes: Connect and gRPC by hand."""

import base64
from abc import abstractmethod
from typing import Any, NoReturn, cast

import grpc
import httpx
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from contract.surfaces import (
    Answer,
    Bags,
    Form,
    Near,
    Page,
    Rows,
    Scan,
    Search,
    Surface,
    Update,
    Updated,
    as_bytes,
    decode_vectors,
    raise_wire_error,
)
from gatherd.store.dtypes import DType
from gatherd_proto.v1 import embedding_pb2, embedding_pb2_grpc, status_pb2, tensor_pb2

_WIRE_DTYPE = {
    "float32": tensor_pb2.DTYPE_FLOAT32,
    "float16": tensor_pb2.DTYPE_FLOAT16,
    "bfloat16": tensor_pb2.DTYPE_BFLOAT16,
    "float64": tensor_pb2.DTYPE_FLOAT64,
}
_MISSING = {
    "error": embedding_pb2.MISSING_ERROR,
    "zero": embedding_pb2.MISSING_ZERO,
    "default": embedding_pb2.MISSING_DEFAULT,
    "skip": embedding_pb2.MISSING_SKIP,
    "init": embedding_pb2.MISSING_INIT,
}
_METRICS = {
    "cosine": embedding_pb2.METRIC_COSINE,
    "dot": embedding_pb2.METRIC_DOT,
    "l2": embedding_pb2.METRIC_L2,
}
_POOLING = {
    "sum": embedding_pb2.POOLING_SUM,
    "mean": embedding_pb2.POOLING_MEAN,
    "max": embedding_pb2.POOLING_MAX,
    "sqrtn": embedding_pb2.POOLING_SQRTN,
}


def keys_message(keys: Any) -> tensor_pb2.Keys:
    """Keys as a message: strings, or anything else as an integer tensor."""
    if isinstance(keys, np.ndarray) and keys.dtype.kind in "iu":
        return tensor_pb2.Keys(integers=id_tensor(keys))
    array = np.asarray(keys, object)
    raw = [as_bytes(key) for key in array.reshape(-1)]
    lengths = np.array([len(key) for key in raw], "<u4").tobytes()
    strings = tensor_pb2.StringKeys(shape=array.shape, lengths=lengths, data=b"".join(raw))
    return tensor_pb2.Keys(strings=strings)


def keys_request(table: str, keys: Any, missing: str) -> embedding_pb2.LookupRequest:
    return embedding_pb2.LookupRequest(
        table=table, keys=keys_message(keys), missing=_MISSING[missing]
    )


def bags_request(table: str, bags: Bags) -> embedding_pb2.LookupBagsRequest:
    missing = _MISSING[bags.missing]
    lookup = embedding_pb2.LookupRequest(table=table, missing=missing)
    if bags.by_keys:
        lookup.keys.CopyFrom(keys_message(bags.rows))
    else:
        lookup.ids.CopyFrom(id_tensor(bags.rows))
    request = embedding_pb2.LookupBagsRequest(
        lookup=lookup,
        offsets=id_tensor(bags.offsets if len(bags.offsets) else np.empty(0, np.int64)),
        pooling=_POOLING.get(bags.mode, 99),  # type: ignore[arg-type]  # 99: no such mode
        padding_id=bags.padding_id,
    )
    if bags.weights is not None:
        weights = np.asarray(bags.weights, "<f4")
        request.weights.CopyFrom(
            tensor_pb2.Tensor(
                dtype=tensor_pb2.DTYPE_FLOAT32, shape=weights.shape, data=weights.tobytes()
            )
        )
    return request


def bags_answer(response: embedding_pb2.LookupResponse, id_count: int) -> Answer:
    status = np.frombuffer(response.status, np.uint8)
    response.ClearField("status")
    vectors, _ = response_answer(response)
    return vectors, status if status.size else np.zeros(id_count, np.uint8)


def keys_answer(response: embedding_pb2.KeysOfResponse | embedding_pb2.ListKeysResponse) -> Any:
    keys = response.keys
    if keys.WhichOneof("kind") == "integers":
        dtype = np.int64 if keys.integers.dtype == tensor_pb2.DTYPE_INT64 else np.uint64
        return np.frombuffer(keys.integers.data, dtype).reshape(tuple(keys.integers.shape)).tolist()
    ends = np.cumsum(np.frombuffer(keys.strings.lengths, "<u4"))
    data = keys.strings.data
    texts = [
        data[end - length : end].decode("utf-8", "surrogateescape")
        for end, length in zip(ends, np.frombuffer(keys.strings.lengths, "<u4"), strict=True)
    ]
    return np.array(texts, object).reshape(tuple(keys.strings.shape)).tolist()


def id_tensor(ids: Any) -> tensor_pb2.Tensor:
    """Ids of any kind as a message: a client in another language may send anything."""
    array = np.asarray(ids)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
        return tensor_pb2.Tensor(dtype=99, shape=array.shape, data=array.tobytes())  # type: ignore[arg-type]  # no such dtype
    array = array.astype(array.dtype.newbyteorder("<"))
    wire = f"DTYPE_{array.dtype.name.upper()}"
    return tensor_pb2.Tensor(dtype=wire, shape=array.shape, data=array.tobytes())


def lookup_request(table: str, ids: Any, dtype: str, missing: str) -> embedding_pb2.LookupRequest:
    return embedding_pb2.LookupRequest(
        table=table,
        ids=id_tensor(ids),
        dtype=_WIRE_DTYPE.get(dtype, 99),  # type: ignore[arg-type]  # 99: no such dtype
        missing=_MISSING.get(missing, 99),  # type: ignore[arg-type]
    )


def response_answer(response: embedding_pb2.LookupResponse) -> Answer:
    names = {number: name for name, number in _WIRE_DTYPE.items()}
    tensor = response.vectors
    dtype = DType(names[tensor.dtype])
    shape = tuple(tensor.shape)
    vectors = decode_vectors(tensor.data, shape, dtype)
    if not response.status:
        return vectors, np.zeros(shape[:-1], np.uint8)
    return vectors, np.frombuffer(response.status, np.uint8).reshape(shape[:-1])


_PROCEDURES = {
    "scatter_add": "ScatterAdd", "apply_gradients": "ApplyGradients", "assign": "Assign",
    "delete_rows": "DeleteRows",
}  # fmt: skip


def update_message(table: str, update: Update) -> embedding_pb2.TableUpdate:
    """One table's part, its values in their own dtype; anything but a float goes as float32."""
    message = embedding_pb2.TableUpdate(table=table, if_version=update.if_version)
    if update.by_keys:
        message.keys.CopyFrom(keys_message(update.rows))
    else:
        message.ids.CopyFrom(id_tensor(update.rows))
    message.create = update.create
    if update.values is None:
        return message
    values = np.asarray(update.values)
    if values.dtype.name not in _WIRE_DTYPE:
        values = values.astype(np.float32)
    message.values.dtype = _WIRE_DTYPE[values.dtype.name]
    message.values.shape.extend(values.shape)
    message.values.data = values.tobytes()
    if update.lr is not None:
        message.learning_rate = update.lr
    return message


def _set_form(request: embedding_pb2.LookupRequest, form: Form) -> None:
    request.dims = form.dims or 0
    request.normalize = form.normalize


class Messages(Surface):
    """A surface that carries the messages of the generated classes, by `_call`."""

    @abstractmethod
    def _call(self, method: str, request: Any, response: Any) -> Any: ...

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        request = lookup_request(table, ids, dtype, missing)
        return response_answer(self._call("Lookup", request, embedding_pb2.LookupResponse()))

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        request = embedding_pb2.LookupManyRequest(
            lookups=[
                lookup_request(table, ids, "float32", missing) for table, ids in requests.items()
            ]
        )
        reply = self._call("LookupMany", request, embedding_pb2.LookupManyResponse())
        answers = (response_answer(one)[0] for one in reply.lookups)
        return dict(zip(requests, answers, strict=True))

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        request = keys_request(table, keys, missing)
        return response_answer(self._call("Lookup", request, embedding_pb2.LookupResponse()))

    def keys_of(self, table: str, ids: Any) -> Any:
        request = embedding_pb2.KeysOfRequest(table=table, ids=id_tensor(ids))
        return keys_answer(self._call("KeysOf", request, embedding_pb2.KeysOfResponse()))

    def ids_of(self, table: str, keys: Any, *, allow_missing: bool = False) -> Any:
        asked = keys_request(table, keys, "error").keys
        request = embedding_pb2.IdsOfRequest(table=table, keys=asked, allow_missing=allow_missing)
        reply = self._call("IdsOf", request, embedding_pb2.IdsOfResponse())
        return np.frombuffer(reply.ids.data, "<i8").reshape(tuple(reply.ids.shape)).tolist()

    def keys(self, table: str, prefix: str = "", limit: int = 1000, start: int = 0) -> Page:
        request = embedding_pb2.ListKeysRequest(
            table=table, prefix=prefix.encode("utf-8", "surrogateescape"), limit=limit, start=start
        )
        reply = self._call("ListKeys", request, embedding_pb2.ListKeysResponse())
        ids = np.frombuffer(reply.ids.data, "<i8").tolist()
        return keys_answer(reply), ids, reply.next if reply.HasField("next") else None

    def scan_page(self, table: str, scan: Scan) -> Rows:
        request = embedding_pb2.ScanRequest(
            table=table,
            version=scan.version,
            cursor=scan.cursor,
            limit=scan.limit,
            prefix=scan.prefix.encode("utf-8", "surrogateescape"),
            dtype=f"DTYPE_{scan.dtype.upper()}",
            with_slots=scan.slots,
        )
        reply = self._call("Scan", request, embedding_pb2.ScanResponse())
        ids = np.frombuffer(reply.ids.data, "<i8").tolist()
        shape = tuple(reply.vectors.shape)
        vectors = decode_vectors(reply.vectors.data, shape, DType(scan.dtype))
        slots = {
            slot.name: np.frombuffer(
                slot.values.data, "<i8" if slot.values.dtype == tensor_pb2.DTYPE_INT64 else "<f4"
            ).reshape(tuple(slot.values.shape))
            for slot in reply.slots
        }
        keys = keys_answer(reply) if reply.HasField("keys") else None
        return Rows(ids, keys, vectors, slots, reply.version, reply.cursor)

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        reply = self._call("LookupBags", bags_request(table, bags), embedding_pb2.LookupResponse())
        return bags_answer(reply, len(bags.rows))

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        request = embedding_pb2.LookupBagsManyRequest(
            bags=[bags_request(table, one) for table, one in bags.items()]
        )
        reply = self._call("LookupBagsMany", request, embedding_pb2.LookupManyResponse())
        answers = (
            bags_answer(one, len(asked.rows))[0]
            for one, asked in zip(reply.lookups, bags.values(), strict=True)
        )
        return dict(zip(bags, answers, strict=True))

    def formed(self, table: str, ids: Any, form: Form) -> Answer:
        request = lookup_request(table, ids, form.dtype, form.missing)
        _set_form(request, form)
        reply = self._call("Lookup", request, embedding_pb2.LookupResponse())
        assert reply.normalized is form.normalize
        return response_answer(reply)

    def formed_bags(self, table: str, bags: Bags, form: Form) -> Answer:
        request = bags_request(table, bags)
        request.lookup.dtype = _WIRE_DTYPE[form.dtype]
        _set_form(request.lookup, form)
        reply = self._call("LookupBags", request, embedding_pb2.LookupResponse())
        return bags_answer(reply, len(bags.rows))

    def informed(self, table: str, ids: Any) -> tuple[NDArray[Any], int, int]:
        request = lookup_request(table, ids, "float32", "error")
        request.with_lsn = True
        reply = self._call("Lookup", request, embedding_pb2.LookupResponse())
        assert reply.HasField("lsn")
        return response_answer(reply)[0], reply.version, reply.lsn

    def neighbors(self, table: str, search: Search) -> Near:
        request = embedding_pb2.NeighborsRequest(
            table=table,
            k=search.k,
            metric=_METRICS.get(search.metric, 99),  # type: ignore[arg-type]  # 99: no such metric
            include_self=search.include_self,
        )
        if search.kind == "ids":
            request.ids.CopyFrom(id_tensor(search.query))
        elif search.kind == "keys":
            request.keys.CopyFrom(keys_message(search.query))
        else:
            vectors = np.asarray(search.query, "<f4")
            request.vectors.CopyFrom(
                tensor_pb2.Tensor(
                    dtype=tensor_pb2.DTYPE_FLOAT32, shape=vectors.shape, data=vectors.tobytes()
                )
            )
        reply = self._call("Neighbors", request, embedding_pb2.NeighborsResponse())
        shape = tuple(reply.ids.shape)
        assert tuple(reply.scores.shape) == shape
        ids = np.frombuffer(reply.ids.data, "<i8").reshape(shape)
        scores = np.frombuffer(reply.scores.data, "<f4").reshape(shape)
        keyed = embedding_pb2.KeysOfResponse(keys=reply.keys)
        return Near(ids, scores, keys_answer(keyed) if reply.HasField("keys") else None)

    def update(self, op: str, updates: dict[str, Update], request_id: str | None = None) -> Updated:
        request = embedding_pb2.UpdateRequest(
            updates=[update_message(table, one) for table, one in updates.items()],
            idempotency_key=request_id,
        )
        reply = self._call(_PROCEDURES[op], request, embedding_pb2.UpdateResponse())
        counts = (
            {table: n for table, n in zip(updates, listed, strict=True) if n} if listed else {}
            for listed in (reply.created, reply.removed, reply.not_admitted)
        )
        return Updated(reply.lsn, dict(zip(updates, reply.versions, strict=True)), *counts)


class Connect(Messages):
    """Connect by hand: the messages of the generated classes, posted with httpx."""

    def __init__(self, base: str, codec: str) -> None:
        self.name = f"connect-{codec}"
        self._http = httpx.Client(base_url=base)
        self._codec = codec

    def _call(self, method: str, request: Any, response: Any) -> Any:
        body = (
            request.SerializeToString()
            if self._codec == "proto"
            else json_format.MessageToJson(request).encode()
        )
        reply = self._http.post(
            f"/gatherd.v1.EmbeddingService/{method}",
            content=body,
            headers={"Content-Type": f"application/{self._codec}", "Connect-Protocol-Version": "1"},
        )
        if reply.status_code != 200:
            raise_connect_error(reply.json())
        if self._codec == "proto":
            response.ParseFromString(reply.content)
        else:
            json_format.Parse(reply.content, response)
        return response

    def close(self) -> None:
        self._http.close()


class Grpc(Messages):
    """gRPC by the generated stub."""

    name = "grpc-stub"

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address.removeprefix("grpc://"),
            options=[("grpc.max_receive_message_length", -1)],
        )
        self._stub = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def _call(self, method: str, request: Any, response: Any) -> Any:
        try:
            return getattr(self._stub, method)(request)
        except grpc.RpcError as error:
            raise_grpc_error(error)

    def close(self) -> None:
        self._channel.close()


class GrpcStream(Grpc):
    """gRPC by a stream of one."""

    name = "grpc-stream"

    def _call(self, method: str, request: Any, response: Any) -> Any:
        assert method == "Lookup", f"{method} has no stream"
        sent = embedding_pb2.LookupStreamRequest(id=7, lookup=request)
        (answer,) = self._stub.LookupStream(iter([sent]))
        assert answer.id == 7
        if answer.WhichOneof("result") == "error":
            raise_status(answer.error)
        return answer.lookup

    def has(self, method: str) -> bool:
        """A stream carries lookups of rows."""
        return method in ("lookup", "lookup_many", "lookup_keys", "formed", "informed")

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        """One stream, a lookup a table, all sent before any answer is read."""
        sent = [
            embedding_pb2.LookupStreamRequest(
                id=index, lookup=lookup_request(table, ids, "float32", missing)
            )
            for index, (table, ids) in enumerate(requests.items())
        ]
        answers = {}
        for table, response in zip(requests, self._stub.LookupStream(iter(sent)), strict=True):
            if response.WhichOneof("result") == "error":
                raise_status(response.error)
            answers[table] = response_answer(response.lookup)[0]
        return answers


def raise_connect_error(document: dict[str, Any]) -> NoReturn:
    detail = document["details"][0]
    assert detail["type"] == "google.rpc.ErrorInfo"
    padded = detail["value"] + "=" * (-len(detail["value"]) % 4)
    info = status_pb2.ErrorInfo.FromString(base64.b64decode(padded))
    raise_wire_error(info.reason, document["message"], dict(info.metadata))


def raise_grpc_error(error: grpc.RpcError) -> NoReturn:
    call = cast("grpc.Call", error)  # every error of a call is one
    metadata = dict(call.trailing_metadata() or ())
    details = metadata["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    status = status_pb2.Status.FromString(details)
    assert status.code == call.code().value[0]
    raise_status(status)


def raise_status(status: status_pb2.Status) -> NoReturn:
    detail = status.details[0]
    assert detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    info = status_pb2.ErrorInfo.FromString(detail.value)
    raise_wire_error(info.reason, status.message, dict(info.metadata))
