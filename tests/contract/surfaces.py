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

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


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


class Connect(Surface):
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

    def close(self) -> None:
        self._http.close()


class Grpc(Surface):
    """gRPC by the generated stub."""

    name = "grpc-stub"

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address.removeprefix("grpc://"),
            options=[("grpc.max_receive_message_length", -1)],
        )
        self._stub = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        try:
            response = self._stub.Lookup(lookup_request(table, ids, dtype, missing))
        except grpc.RpcError as error:
            raise_grpc_error(error)
        return response_answer(response)

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        request = embedding_pb2.LookupManyRequest(
            lookups=[
                lookup_request(table, ids, "float32", missing) for table, ids in requests.items()
            ]
        )
        try:
            reply = self._stub.LookupMany(request)
        except grpc.RpcError as error:
            raise_grpc_error(error)
        answers = (response_answer(one)[0] for one in reply.lookups)
        return dict(zip(requests, answers, strict=True))

    def close(self) -> None:
        self._channel.close()


class GrpcStream(Grpc):
    """gRPC by a stream of one."""

    name = "grpc-stream"

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        request = embedding_pb2.LookupStreamRequest(
            id=7, lookup=lookup_request(table, ids, dtype, missing)
        )
        (response,) = self._stub.LookupStream(iter([request]))
        assert response.id == 7
        if response.WhichOneof("result") == "error":
            raise_status(response.error)
        return response_answer(response.lookup)

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
        query: dict[str, Any] = {"dtype": dtype, "missing": missing}
        array = np.asarray(ids)
        array = array.astype(array.dtype.newbyteorder("<"))
        if self._media == "npy":
            content, media = io.BytesIO(), "application/x-npy"
            np.save(content, array)
            body_bytes = content.getvalue()
        else:
            body_bytes, media = array.tobytes(), "application/octet-stream"
            query |= {"ids_dtype": array.dtype.name, "shape": ",".join(map(str, array.shape))}
        headers = {"Content-Type": media, "Accept": media}
        reply = self._http.post(path, params=query, content=body_bytes, headers=headers)
        self._check(reply)
        return self._array_answer(reply, missing)

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

    def _array_answer(self, reply: httpx.Response, missing: str) -> Answer:
        shape = tuple(int(n) for n in reply.headers["gatherd-shape"].split(","))
        dtype = DType(reply.headers["gatherd-dtype"])
        status_bytes = int(reply.headers["gatherd-status-bytes"])
        status = np.zeros(shape[:-1], np.uint8)
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
            status = np.frombuffer(reply.content, np.uint8)[len(data) :].reshape(shape[:-1])
        return decode_vectors(data, shape, dtype), status

    def close(self) -> None:
        self._http.close()
