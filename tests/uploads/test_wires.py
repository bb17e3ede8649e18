"""Chunks as any client may send them: over REST, and as messages, right, repeated and wrong."""

import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd_proto.v1 import upload_pb2
from uploads.conftest import Uploading

OCTETS = {"Content-Type": "application/octet-stream"}
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture(scope="module")
def rest(uploading: Uploading) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=uploading.server.http) as client:
        yield client


def begin(rest: httpx.Client, name: str, **options: Any) -> str:
    reply = rest.post("/v1/uploads", json={"name": name, "dim": 4, **options})
    assert reply.status_code == 200, reply.text
    upload: str = reply.json()["upload"]
    return upload


def put(rest: httpx.Client, upload: str, body: Any, **query: Any) -> httpx.Response:
    path = f"/v1/uploads/{upload}/rows"
    if isinstance(body, bytes):
        return rest.put(path, content=body, params=query, headers=OCTETS)
    return rest.put(path, json=body, params=query)


def test_rest_in_json_and_in_bytes(
    rest: httpx.Client, uploading: Uploading, names: Iterator[str]
) -> None:
    name = next(names)
    upload = begin(rest, name, rows=6)
    half = {"offset": 0, "rows": ROWS[:2].tolist()}
    assert put(rest, upload, half).json() == {"next_row": 2}
    raw = ROWS[2:].tobytes()
    assert put(rest, upload, raw, offset=2, crc32=zlib.crc32(raw)).json() == {"next_row": 6}
    told = rest.get(f"/v1/uploads/{upload}").json()
    assert (told["name"], told["next_row"], told["bytes"], told["rows"]) == (name, 6, 96, 6)
    assert [one["upload"] for one in rest.get("/v1/uploads").json()["uploads"]] == [upload]
    first = rest.post(f"/v1/uploads/{upload}:commit").json()
    assert (first["version"], first["rows"], first["duplicates"]) == (1, 6, 0)
    assert rest.post(f"/v1/uploads/{upload}:commit").json() == first, "sent again"
    assert rest.get("/v1/uploads").json() == {"uploads": []}
    assert put(rest, upload, half).json()["reason"] == "FAILED_PRECONDITION"
    with Client(uploading.server.http) as client:
        np.testing.assert_array_equal(client.lookup(name, range(6)), ROWS)


@pytest.mark.parametrize("kind", ["bytes", "int64", "uint64"])
def test_rest_with_keys(
    rest: httpx.Client, uploading: Uploading, names: Iterator[str], kind: str
) -> None:
    name = next(names)
    upload = begin(rest, name, key_kind=kind, dtype="float16")
    half = ROWS.astype(np.float16)
    if kind == "bytes":
        keys: list[Any] = ["a", "bé", "ccc", "d", "e", "京"]
        encoded = [key.encode() for key in keys]
        lengths = np.array([*map(len, encoded)], "<u4")
        raw = lengths[2:].tobytes() + b"".join(encoded[2:])
    else:
        keys = [5, 3, 2**63 - 1, 9, 1, 0]
        raw = np.array(keys[2:], "<i8").tobytes()
    first = {"offset": 0, "rows": ROWS[:2].tolist(), "keys": keys[:2]}
    assert put(rest, upload, first).json() == {"next_row": 2}
    body = raw + half[2:].tobytes()
    assert put(rest, upload, body, offset=2, rows=4).json() == {"next_row": 6}
    assert put(rest, upload, body, offset=2, rows=4).json() == {"next_row": 6}, "sent again"
    assert rest.post(f"/v1/uploads/{upload}:commit").json()["rows"] == 6
    with Client(uploading.server.http) as client:
        np.testing.assert_array_equal(client.lookup(name, keys=keys), ROWS)


def test_a_gap_and_a_changed_chunk_name_the_expected_offset(
    rest: httpx.Client, names: Iterator[str]
) -> None:
    upload = begin(rest, next(names))
    assert put(rest, upload, ROWS[:3].tobytes(), offset=0).json() == {"next_row": 3}
    for offset, rows in ((4, ROWS[4:]), (2, ROWS[2:4]), (0, ROWS[1:3])):
        reply = put(rest, upload, rows.tobytes(), offset=offset)
        assert reply.status_code == 409
        assert reply.json()["metadata"]["expected"] == "3"
        assert "row 3" in reply.json()["detail"]
    assert put(rest, upload, ROWS[1:3].tobytes(), offset=1).json() == {"next_row": 3}
    assert rest.delete(f"/v1/uploads/{upload}").json() == {}


@pytest.mark.parametrize(
    ("body", "query", "told"),
    [
        (ROWS.tobytes(), {"offset": 0, "crc32": 1}, "crc32"),
        (ROWS.tobytes()[:-1], {"offset": 0}, "isn't a number of rows"),
        (ROWS.tobytes(), {}, "offset is required"),
        (ROWS.tobytes(), {"offset": "x"}, "must be a number"),
        (ROWS.tobytes(), {"offset": 0, "rows": 5}, "has 6 rows"),
        (ROWS.tobytes(), {"offset": 0, "row": 5}, "unknown query parameter"),
        ({"offset": 0, "rows": [[1, 2, 3]]}, {}, "shape (1, 3)"),
        ({"offset": 0, "rows": [[1, 2, 3, 4]], "keys": [1]}, {}, "has keys"),
        ({"offset": 0, "rows": ROWS.tolist() * 2}, {}, "were announced"),
    ],
)
def test_rest_says_what_is_wrong_with_a_chunk(
    rest: httpx.Client, names: Iterator[str], body: Any, query: dict[str, Any], told: str
) -> None:
    upload = begin(rest, next(names), rows=10)
    reply = put(rest, upload, body, **query)
    assert reply.status_code == 422
    assert told in reply.json()["detail"]
    early = rest.post(f"/v1/uploads/{upload}:commit")
    assert (early.status_code, early.json()["metadata"]["expected"]) == (409, "0")
    assert rest.get(f"/v1/uploads/{upload}").json()["next_row"] == 0
    assert rest.delete(f"/v1/uploads/{upload}").status_code == 200
    assert rest.delete(f"/v1/uploads/{upload}").status_code == 404


def test_beginning_again_goes_on_and_another_table_is_refused(
    rest: httpx.Client, names: Iterator[str]
) -> None:
    name, upload = next(names), "ab" * 16
    assert begin(rest, name, upload=upload) == upload
    put(rest, upload, ROWS.tobytes(), offset=0)
    again = rest.post("/v1/uploads", json={"name": name, "dim": 4, "upload": upload})
    assert again.json()["next_row"] == 6
    other = rest.post("/v1/uploads", json={"name": name, "dim": 3, "upload": upload})
    assert other.json()["reason"] == "ALREADY_EXISTS"
    assert rest.delete(f"/v1/uploads/{upload}").status_code == 200


def _message(upload: str, **changed: Any) -> upload_pb2.PutChunkRequest:
    data = changed.pop("data", ROWS.tobytes())
    tensor = {"dtype": "DTYPE_FLOAT32", "shape": [6, 4], "data": data, **changed}
    return upload_pb2.PutChunkRequest(upload=upload, rows=tensor, crc32=zlib.crc32(ROWS.tobytes()))


@pytest.mark.parametrize("wire", ["connect", "grpc"])
def test_messages_are_checked(
    rest: httpx.Client, uploading: Uploading, names: Iterator[str], wire: str
) -> None:
    upload = begin(rest, next(names))
    path = "/gatherd.v1.UploadService/PutChunk"

    def sent(message: upload_pb2.PutChunkRequest) -> str:
        """What is wrong with it; empty for nothing."""
        if wire == "connect":
            headers = {"Content-Type": "application/proto"}
            reply = rest.post(path, content=message.SerializeToString(), headers=headers)
            return "" if reply.status_code == 200 else str(reply.json()["message"])
        with grpc.insecure_channel(uploading.server.grpc.removeprefix("grpc://")) as channel:
            call: Any = channel.unary_unary(path)
            try:
                call(message.SerializeToString())
            except grpc.RpcError as error:
                return str(error.details())
        return ""

    flipped = bytearray(ROWS.tobytes())
    flipped[17] ^= 4
    assert "damaged on its way" in sent(_message(upload, data=bytes(flipped)))
    assert "float16" in sent(_message(upload, dtype="DTYPE_FLOAT16", shape=[12, 4]))
    assert "bytes" in sent(_message(upload, shape=[7, 4]))
    assert "32 hex digits" in sent(_message("../" * 10 + "xx"))
    assert rest.get(f"/v1/uploads/{upload}").json()["next_row"] == 0
    assert sent(_message(upload)) == ""
    assert rest.get(f"/v1/uploads/{upload}").json()["next_row"] == 6
    assert rest.delete(f"/v1/uploads/{upload}").status_code == 200
