"""Every way to ask for a lookup, behind one method, so that one set of cases judges them all.

`Surface.lookup` takes ids as a case has them, right or wrong, and puts them on its wire as they
are; it returns vectors in the dtype asked for (bfloat16 as float32) and a status per id, or raises
the gatherd error that the wire told of.
"""

import asyncio
import base64
import io
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
import httpx
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from gatherd import AsyncClient, Client
from gatherd.errors import by_reason
from gatherd.store.dtypes import DType, bfloat16_to_float32
from gatherd_proto.v1 import embedding_pb2, embedding_pb2_grpc, status_pb2, tensor_pb2

Answer = tuple[NDArray[Any], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Bags:
    """Flat ids or keys with offsets, and how they are pooled."""

    rows: Any
    offsets: Any
    mode: str = "sum"
    weights: Any = None
    padding_id: int | None = None
    missing: str = "error"
    by_keys: bool = False

    def options(self) -> dict[str, Any]:
        """What the SDK takes beside the table."""
        return {
            "keys" if self.by_keys else "ids": self.rows,
            "offsets": self.offsets,
            "mode": self.mode,
            "weights": self.weights,
            "padding_id": self.padding_id,
            "missing": self.missing,
        }


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
}
_POOLING = {
    "sum": embedding_pb2.POOLING_SUM,
    "mean": embedding_pb2.POOLING_MEAN,
    "max": embedding_pb2.POOLING_MAX,
    "sqrtn": embedding_pb2.POOLING_SQRTN,
}


class Surface(ABC):
    """One way to ask."""

    name: str

    def can_tell(self, shape: tuple[int, ...]) -> bool:
        """Whether this surface can carry ids of `shape`."""
        return True

    @abstractmethod
    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer: ...

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        raise NotImplementedError

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        raise NotImplementedError

    def keys_of(self, table: str, ids: Any) -> Any:
        """Keys nested as the ids are: str (surrogateescape) or int."""
        raise NotImplementedError

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        raise NotImplementedError

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        raise NotImplementedError

    def has(self, method: str) -> bool:
        """Whether this surface has the operation `method`."""
        return getattr(type(self), method) is not getattr(Surface, method)

    @property
    def answers_many(self) -> bool:
        """Whether this surface has a lookup of many tables."""
        return type(self).lookup_many is not Surface.lookup_many

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""


def raise_wire_error(reason: str, message: str, metadata: dict[str, str]) -> NoReturn:
    cls = by_reason(reason)
    assert cls is not None, f"unknown reason {reason!r} with message {message!r}"
    raise cls(message, metadata)


def decode_vectors(data: bytes, shape: tuple[int, ...], dtype: DType) -> NDArray[Any]:
    stored = np.frombuffer(data, dtype.storage).reshape(shape)
    if dtype is not DType.BFLOAT16:
        return stored
    wide = np.empty(shape, np.float32)
    bfloat16_to_float32(stored, wide)
    return wide


class SyncSdk(Surface):
    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._client = Client(url)

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        return self._client.lookup(table, ids, dtype=dtype, missing=missing, return_status=True)

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        return self._client.lookup_many(requests, missing=missing)

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        return self._client.lookup(table, keys=keys, missing=missing, return_status=True)

    def keys_of(self, table: str, ids: Any) -> Any:
        return self._client.keys_of(table, ids).tolist()

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        return self._client.lookup_bags(table, **bags.options(), return_status=True)

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        return self._client.lookup_bags_many(**sdk_bags_many(bags))

    def close(self) -> None:
        self._client.close()


class AsyncSdk(Surface):
    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(url))

    @staticmethod
    async def _make(url: str) -> AsyncClient:
        return AsyncClient(url)

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        return self._runner.run(
            self._client.lookup(table, ids, dtype=dtype, missing=missing, return_status=True)
        )

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        return self._runner.run(self._client.lookup_many(requests, missing=missing))

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        return self._runner.run(
            self._client.lookup(table, keys=keys, missing=missing, return_status=True)
        )

    def keys_of(self, table: str, ids: Any) -> Any:
        return self._runner.run(self._client.keys_of(table, ids)).tolist()

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        return self._runner.run(
            self._client.lookup_bags(table, **bags.options(), return_status=True)
        )

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        return self._runner.run(self._client.lookup_bags_many(**sdk_bags_many(bags)))

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


def sdk_bags_many(bags: dict[str, Bags]) -> dict[str, Any]:
    """The arguments of lookup_bags_many; the cases give every table the same options."""
    one = next(iter(bags.values()))
    by_id = {table: (b.rows, b.offsets) for table, b in bags.items() if not b.by_keys}
    by_key = {table: (b.rows, b.offsets) for table, b in bags.items() if b.by_keys}
    weights = {table: b.weights for table, b in bags.items() if b.weights is not None}
    return {
        "ids": by_id,
        "keys": by_key or None,
        "weights": weights or None,
        "mode": one.mode,
        "missing": one.missing,
    }


def keys_message(keys: Any) -> tensor_pb2.Keys:
    """Keys as a message: strings, or whatever else as an integer tensor."""
    if isinstance(keys, np.ndarray) and keys.dtype.kind in "iu":
        return tensor_pb2.Keys(integers=id_tensor(keys))
    array = np.asarray(keys, object)
    raw = [as_bytes(key) for key in array.reshape(-1)]
    lengths = np.array([len(key) for key in raw], "<u4").tobytes()
    strings = tensor_pb2.StringKeys(shape=array.shape, lengths=lengths, data=b"".join(raw))
    return tensor_pb2.Keys(strings=strings)


def as_bytes(key: Any) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape")


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


def keys_answer(response: embedding_pb2.KeysOfResponse) -> Any:
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
    """Ids as a message, whatever they are: a client in another language may send anything."""
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
            document = reply.json()
            detail = document["details"][0]
            assert detail["type"] == "google.rpc.ErrorInfo"
            padded = detail["value"] + "=" * (-len(detail["value"]) % 4)
            info = status_pb2.ErrorInfo.FromString(base64.b64decode(padded))
            raise_wire_error(info.reason, document["message"], dict(info.metadata))
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
        return method in ("lookup", "lookup_many", "lookup_keys")

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


def raise_grpc_error(error: grpc.RpcError) -> NoReturn:
    call = cast("grpc.Call", error)  # every error of a call is one
    metadata = dict(call.trailing_metadata() or ())
    details = metadata["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    status = status_pb2.Status.FromString(details)
    assert status.code == call.code().value[0]
    raise_status(status)


def raise_status(status: status_pb2.Status) -> NoReturn:
    (detail,) = status.details
    assert detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    info = status_pb2.ErrorInfo.FromString(detail.value)
    raise_wire_error(info.reason, status.message, dict(info.metadata))


JSON, NPY, OCTETS = "application/json", "application/x-npy", "application/octet-stream"


def json_keys(keys: Any) -> tuple[Any, str]:
    """Keys as JSON has them, and their encoding."""
    array = np.asarray(keys) if not isinstance(keys, list) else np.asarray(keys, object)
    if array.dtype.kind in "iu":
        return array.tolist(), "utf-8"
    try:
        for key in array.reshape(-1):
            as_bytes(key).decode()
    except UnicodeDecodeError:
        flat = [base64.b64encode(as_bytes(key)).decode() for key in array.reshape(-1)]
        return np.array(flat, object).reshape(array.shape).tolist(), "base64"
    return array.tolist(), "utf-8"


def json_bags(bags: Bags) -> dict[str, Any]:
    rows, encoding = (
        json_keys(bags.rows) if bags.by_keys else (np.asarray(bags.rows).tolist(), "utf-8")
    )
    weights = None if bags.weights is None else np.asarray(bags.weights).tolist()
    return {
        "keys" if bags.by_keys else "ids": rows,
        "encoding": encoding,
        "offsets": np.asarray(bags.offsets).tolist(),
        "mode": bags.mode,
        "weights": weights,
        "padding_id": bags.padding_id,
        "missing": bags.missing,
    }


class Rest(Surface):
    """REST: JSON, or arrays in and out by media type."""

    def __init__(self, base: str, media: str) -> None:
        self.name = f"rest-{media}"
        self._http = httpx.Client(base_url=base)
        self._media = media

    def can_tell(self, shape: tuple[int, ...]) -> bool:
        """Nested lists can't tell how long the lists in an empty list are."""
        return self._media != "json" or 0 not in shape[:-1]

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        path = f"/v1/tables/{table}:lookup"
        if self._media == "json":
            listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
            body = {"ids": listed, "dtype": dtype, "missing": missing}
            reply = self._http.post(path, json=body)
            self._check(reply)
            return self._json_answer(reply.json(), dtype)
        return self._array_lookup(table, ids, {"dtype": dtype, "missing": missing}, missing)

    def _array_lookup(self, table: str, ids: Any, query: dict[str, Any], missing: str) -> Answer:
        array = np.asarray(ids)
        array = array.astype(array.dtype.newbyteorder("<"))
        if self._media == "npy":
            content, media = io.BytesIO(), NPY
            np.save(content, array)
            body_bytes = content.getvalue()
        else:
            body_bytes, media = array.tobytes(), OCTETS
            query |= {"ids_dtype": array.dtype.name, "shape": ",".join(map(str, array.shape))}
        headers = {"Content-Type": media, "Accept": media}
        path = f"/v1/tables/{table}:lookup"
        reply = self._http.post(path, params=query, content=body_bytes, headers=headers)
        self._check(reply)
        return self._array_answer(reply, missing, array.shape)

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        tables = {
            table: {"ids": np.asarray(ids).tolist(), "missing": missing}
            for table, ids in requests.items()
        }
        reply = self._http.post("/v1/lookup", json={"tables": tables})
        self._check(reply)
        return {
            table: self._json_answer(answer, "float32")[0]
            for table, answer in reply.json()["tables"].items()
        }

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        if self._media != "json":
            query = {"missing": missing, "by": "keys"}
            return self._array_lookup(table, np.asarray(keys), query, missing)
        given, encoding = json_keys(keys)
        body = {"keys": given, "encoding": encoding, "missing": missing}
        reply = self._http.post(f"/v1/tables/{table}:lookup", json=body)
        self._check(reply)
        return self._json_answer(reply.json(), "float32")

    def keys_of(self, table: str, ids: Any) -> Any:
        reply = self._http.post(
            f"/v1/tables/{table}:keysOf", json={"ids": np.asarray(ids).tolist()}
        )
        self._check(reply)
        document = reply.json()
        if document["encoding"] == "base64":
            flat = [
                base64.b64decode(key).decode("utf-8", "surrogateescape")
                for key in np.array(document["keys"], object).reshape(-1)
            ]
            return np.array(flat, object).reshape(np.shape(ids)).tolist()
        return document["keys"]

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        headers = {"Accept": {"json": JSON, "npy": NPY, "octets": OCTETS}[self._media]}
        path = f"/v1/tables/{table}:lookupBags"
        reply = self._http.post(path, json=json_bags(bags), headers=headers)
        self._check(reply)
        if self._media != "json":
            return self._array_answer(reply, bags.missing, (len(bags.rows),))
        document = reply.json()
        vectors = np.array(document["vectors"], np.float32).reshape(document["shape"])
        return vectors, np.array(document.get("status", [0] * len(bags.rows)), np.uint8)

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        tables = {table: json_bags(one) for table, one in bags.items()}
        reply = self._http.post("/v1/lookupBags", json={"tables": tables})
        self._check(reply)
        return {
            table: np.array(answer["vectors"], np.float32).reshape(answer["shape"])
            for table, answer in reply.json()["tables"].items()
        }

    @staticmethod
    def _check(reply: httpx.Response) -> None:
        if reply.status_code != 200:
            assert reply.headers["content-type"] == "application/problem+json"
            problem = json.loads(reply.content)
            assert problem["status"] == reply.status_code
            assert problem["error"] == problem["detail"]
            raise_wire_error(problem["reason"], problem["detail"], problem["metadata"])

    @staticmethod
    def _json_answer(document: dict[str, Any], dtype: str) -> Answer:
        shape = tuple(document["shape"])
        assert document["dtype"] == dtype
        wanted = np.float16 if dtype == "float16" else np.float32
        vectors = np.array(document["vectors"], wanted).reshape(shape)
        if "status" not in document:
            return vectors, np.zeros(shape[:-1], np.uint8)
        return vectors, np.array(document["status"], np.uint8).reshape(shape[:-1])

    def _array_answer(self, reply: httpx.Response, missing: str, asked: tuple[int, ...]) -> Answer:
        shape = tuple(int(n) for n in reply.headers["gatherd-shape"].split(","))
        dtype = DType(reply.headers["gatherd-dtype"])
        status_bytes = int(reply.headers["gatherd-status-bytes"])
        status = np.zeros(asked, np.uint8)
        if self._media == "npy":
            stream = io.BytesIO(reply.content)
            stored = np.load(stream)
            if missing != "error":
                status = np.load(stream)
            vectors = decode_vectors(stored.tobytes(), stored.shape, dtype)
            assert stored.shape == shape
            return vectors, status
        data = reply.content[: len(reply.content) - status_bytes]
        if missing != "error":
            status = np.frombuffer(reply.content, np.uint8)[len(data) :].reshape(asked)
        return decode_vectors(data, shape, dtype), status

    def close(self) -> None:
        self._http.close()
