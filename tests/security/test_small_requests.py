"""Whatever one client sends, the others are answered: requests are bounded before they are parsed.

Each case is one request of a hostile client, most of them a few kilobytes as they are sent, while
another client asks for /healthz and looks a row up. That the request is refused by a count, which
is what keeps it cheap, is seen by its answer; how long the others waited depends on the machine,
too, so a case that was slow is tried again before it is believed.
"""

import gzip
import http.client
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import InvalidArgument
from gatherd_proto.framing import varint
from gatherd_proto.v1 import tensor_pb2
from security.conftest import Guarded

WAIT_SECONDS_MAX = 0.3
TRIES = 4
MEBI = 1 << 20
BODY_BYTES_MAX = 16 * MEBI

EMBEDDING = "/gatherd.v1.EmbeddingService/"
TABLES = "/gatherd.v1.TableService/"


@dataclass(frozen=True)
class Attack:
    """A request of one wire, and what is to be answered: a reason, or "" for anything."""

    name: str
    wire: str
    path: str
    body: Callable[[], bytes]
    reason: str
    headers: tuple[tuple[str, str], ...] = ()
    token: str = "all"

    def __str__(self) -> str:
        return f"{self.wire}-{self.name}"


def rest(name: str, path: str, body: Callable[[], bytes], reason: str, **more: Any) -> Attack:
    return Attack(name, "rest", path, body, reason, (("Content-Type", "application/json"),), **more)


def octets(name: str, query: str, body: bytes, reason: str) -> Attack:
    headers = (("Content-Type", "application/octet-stream"), ("Accept", "application/octet-stream"))
    path = f"/v1/tables/items:lookup?{query}"
    return Attack(name, "octets", path, lambda: body, reason, headers)


def npy(name: str, header: str, reason: str) -> Attack:
    raw = header.encode()
    body = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw
    headers = (("Content-Type", "application/x-npy"),)
    return Attack(name, "npy", "/v1/tables/items:lookup", lambda: body, reason, headers)


def connect_json(name: str, procedure: str, body: Callable[[], bytes], reason: str) -> Attack:
    headers = (("Content-Type", "application/json"),)
    return Attack(name, "connect-json", EMBEDDING + procedure, body, reason, headers)


def protobuf(
    name: str, path: str, body: Callable[[], bytes], reason: str, **more: Any
) -> list[Attack]:
    """The same message by Connect as it is and gzipped, and by gRPC."""
    plain = (("Content-Type", "application/proto"),)
    return [
        Attack(name, "connect", path, body, reason, plain, **more),
        Attack(name, "grpc", path, body, reason, **more),
    ]


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def packed_shape(dims: int) -> bytes:
    """A LookupRequest whose ids have a shape of so many dimensions."""
    ids = b"\x08" + bytes((tensor_pb2.DTYPE_INT64,)) + field(2, b"\x01" * dims)
    return field(1, b"items") + field(2, ids)


def unpacked_shape(dims: int) -> bytes:
    return field(1, b"items") + field(2, b"\x10\x01" * dims)


def string_shape(dims: int) -> bytes:
    return field(1, b"items") + field(6, field(1, field(1, b"\x01" * dims)))


ONE_ID = tensor_pb2.Tensor(
    dtype=tensor_pb2.DTYPE_INT64, shape=[1], data=bytes(8)
).SerializeToString()


NO_ID = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_INT64, shape=[0]).SerializeToString()
NO_IDS = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_INT64, shape=[0, 2**62]).SerializeToString()
NO_VALUES = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[0, 2**62]).SerializeToString()
NOTHING = tensor_pb2.StringKeys(shape=[0, 2**62]).SerializeToString()


def listed(item: bytes, count: int) -> bytes:
    return b",".join([item] * count)


def numbered(template: str, count: int) -> bytes:
    return ",".join(template % number for number in range(count)).encode()


LOOKUP = "/v1/tables/items:lookup"
ASSIGN = "/v1/tables/items:assign"
LIMIT, INVALID, MALFORMED = "LIMIT_EXCEEDED", "INVALID_ARGUMENT", "MALFORMED_REQUEST"
IDS_MAX = 1_048_576

ATTACKS = [
    rest(
        "objects", "/v1/lookup", lambda: b'{"tables":[' + listed(b"{}", 5_000_000) + b"]}", LIMIT
    ),
    rest(
        "objects of who may read nothing", "/v1/lookup",
        lambda: b'{"tables":[' + listed(b"{}", 5_000_000) + b"]}", "PERMISSION_DENIED",
        token="metrics",
    ),
    rest(
        "tables", "/v1/lookup",
        lambda: b'{"tables":{' + numbered('"t%d":{"ids":[1]}', 500_000) + b"}}", LIMIT,
    ),
    rest("members", LOOKUP, lambda: b"{" + numbered('"m%d":1', 1_000_000) + b"}", LIMIT),
    rest("ids", LOOKUP, lambda: b'{"ids":[' + listed(b"1", 8_000_000) + b"]}", LIMIT),
    rest("empty lists", LOOKUP, lambda: b'{"ids":[' + listed(b"[]", IDS_MAX) + b"]}", ""),
    rest(
        "ids and a bool", LOOKUP,
        lambda: b'{"ids":[' + listed(b"1", IDS_MAX - 1) + b",true]}", INVALID,
    ),
    rest(
        "ids and a long integer", LOOKUP,
        lambda: b'{"ids":[' + listed(b"1", IDS_MAX - 1) + b",36893488147419103232]}", INVALID,
    ),
    rest("digits", LOOKUP, lambda: b'{"ids":[' + b"1" * 15_000_000 + b"]}", MALFORMED),
    rest("nesting", LOOKUP, lambda: b'{"ids":' + b"[" * 8_000_000, MALFORMED),
    rest(
        "keys full of what is counted", LOOKUP,
        lambda: b'{"keys":[' + listed(b'"{:,\\\\\\"[{"', 1_000_000) + b"]}", "NO_KEYS",
    ),
    rest("one long key", LOOKUP, lambda: b'{"keys":["' + b"{" * 15_000_000 + b'"]}', INVALID),
    rest(
        "bags", "/v1/tables/items:lookupBags",
        lambda: b'{"ids":[' + listed(b"[1]", IDS_MAX) + b'],"weights":[' + listed(b"[]", 9) + b"]}",
        INVALID,
    ),
    rest("keys of ids", "/v1/tables/items:keysOf",
         lambda: b'{"ids":[' + listed(b"1", 2_000_000) + b"]}", LIMIT),
    rest(
        "keys to assign", ASSIGN,
        lambda: b'{"keys":[' + listed(b'"a"', 2_000_000) + b'],"values":[]}', LIMIT,
    ),
    rest(
        "strings to assign", ASSIGN,
        lambda: b'{"ids":[1],"values":[' + listed(b'"1"', 2_000_000) + b"]}", LIMIT,
    ),
    rest(
        "numbers to assign", ASSIGN,
        lambda: b'{"ids":[1],"values":[[' + listed(b"0.5", 2_000_000) + b"]]}", INVALID,
    ),
    rest(
        "rows to assign", ASSIGN,
        lambda: b'{"ids":[1],"values":[' + listed(b"[1]", 2_000_000) + b"]}", LIMIT,
    ),
    rest(
        "as many rows as there may be", ASSIGN,
        lambda: b'{"ids":[1],"values":[' + listed(b"[1]", 1_000_000) + b"]}", INVALID,
    ),
    rest(
        "a table's size", "/v1/tables",
        lambda: b'{"name":"x","rows":[' + listed(b"1", 5_000_000) + b"]}", INVALID,
    ),
    rest(
        "an optimizer's options", "/v1/tables/items:setOptimizer",
        lambda: b'{"optimizer":{"name":"sgd",' + numbered('"o%d":1', 500_000) + b"}}", INVALID,
    ),
    rest("a long name", "/v1/tables", lambda: b'{"name":"' + b"x" * 15_000_000 + b'"}', INVALID),
    rest("what inflates too far", LOOKUP, lambda: b" " * (200 * MEBI), LIMIT),
    rest("a long answer", LOOKUP, lambda: b'{"ids":[' + listed(b"1", IDS_MAX) + b"]}", ""),
    octets("shape", "shape=" + ",".join(["1"] * 12_000), bytes(8), INVALID),
    Attack(
        "empty lists without an id", "octets", f"{LOOKUP}?shape=549755813888,0", lambda: b"",
        INVALID, (("Content-Type", "application/octet-stream"), ("Accept", "application/json")),
    ),
    octets("shape of nothing", "shape=0,4611686018427387904", b"", INVALID),
    npy("dimensions", "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "1," * 30_000 + ")}",
        INVALID),
    npy("long dimensions", "{'descr': '<i8', 'fortran_order': False, 'shape': ("
        + ("9" * 4000 + ",") * 15 + ")}", INVALID),
    npy("shape of nothing",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (0, 4611686018427387904)}", INVALID),
    npy("nesting", "{'descr': " + "(" * 60_000, MALFORMED),
    connect_json(
        "objects", "LookupMany", lambda: b'{"lookups":[' + listed(b"{}", 5_000_000) + b"]}", LIMIT
    ),
    connect_json(
        "shape", "Lookup",
        lambda: b'{"table":"items","ids":{"shape":[' + listed(b"1", 4_000_000) + b"]}}", LIMIT,
    ),
    connect_json("members", "Lookup",
                 lambda: b"{" + numbered('"m%d":1', 1_000_000) + b"}", LIMIT),
    connect_json(
        "bytes", "Lookup",
        lambda: b'{"table":"items","ids":{"dtype":"DTYPE_INT8","data":"' + b"AAAA" * 3_900_000
        + b'"}}', INVALID,
    ),
    *protobuf("lookups", EMBEDDING + "LookupMany", lambda: b"\x0a\x00" * 8_000_000, LIMIT),
    *protobuf("lookups of who may read nothing", EMBEDDING + "LookupMany",
              lambda: b"\x0a\x00" * 8_000_000, "PERMISSION_DENIED", token="metrics"),
    *protobuf("bags", EMBEDDING + "LookupBagsMany", lambda: b"\x0a\x00" * 8_000_000, LIMIT),
    *protobuf("updates", EMBEDDING + "ScatterAdd", lambda: b"\x0a\x00" * 8_000_000, LIMIT),
    *protobuf("packed shape", EMBEDDING + "Lookup", lambda: packed_shape(15_000_000), INVALID),
    *protobuf("unpacked shape", EMBEDDING + "Lookup", lambda: unpacked_shape(8_000_000), LIMIT),
    *protobuf("keys' shape", EMBEDDING + "Lookup", lambda: string_shape(15_000_000), INVALID),
    *protobuf("shape of nothing", EMBEDDING + "Lookup",
              lambda: field(1, b"items") + field(2, NO_IDS), INVALID),
    *protobuf("keys' shape of nothing", EMBEDDING + "Lookup",
              lambda: field(1, b"items") + field(6, field(1, NOTHING)), INVALID),
    *protobuf("bags of nothing", EMBEDDING + "LookupBags",
              lambda: field(1, field(1, b"items") + field(2, NO_IDS)), INVALID),
    *protobuf("keys of nothing", EMBEDDING + "KeysOf",
              lambda: field(1, b"items") + field(2, NO_IDS), INVALID),
    *protobuf("an update of nothing", EMBEDDING + "Assign",
              lambda: field(1, field(1, b"items") + field(2, NO_IDS)), INVALID),
    *protobuf("values of nothing", EMBEDDING + "Assign",
              lambda: field(1, field(1, b"items") + field(2, NO_ID) + field(4, NO_VALUES)),
              INVALID),
    *protobuf("unknown fields", EMBEDDING + "Lookup", lambda: b"\x78\x01" * 8_000_000, LIMIT),
    *protobuf("unknown fields", TABLES + "ListTables", lambda: b"\x78\x01" * 8_000_000, LIMIT),
    *protobuf("groups", EMBEDDING + "Lookup", lambda: b"\x7b" * 16_000_000, LIMIT),
    *protobuf("options", TABLES + "SetOptimizer",
              lambda: field(2, b"\x12\x00" * 8_000_000), LIMIT),
    *protobuf("a long table name", EMBEDDING + "Lookup",
              lambda: field(1, b"items" * 3_200_000) + field(2, ONE_ID), "PERMISSION_DENIED",
              token="reader"),
    Attack("health", "grpc", "/grpc.health.v1.Health/Check", lambda: b"\x78\x01" * 8_000_000, ""),
    Attack("reflection", "grpc", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
           lambda: b"\x78\x01" * 8_000_000, ""),
    *protobuf("a field past the end", EMBEDDING + "Lookup",
              lambda: b"\x78\x80\x80\x80\x01" * 14_000 + b"\x0a\xff\xff\xff\x7f", MALFORMED),
]  # fmt: skip


def ask_http(server: Any, attack: Attack, token: str, content: bytes) -> tuple[int, str]:
    address = urlsplit(server.http)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    headers = {**dict(attack.headers), "Authorization": f"Bearer {token}"}
    if attack.wire in ("rest", "connect-json", "connect"):
        headers["Content-Encoding"] = "gzip"
    try:
        connection.request("POST", attack.path, content, headers)
        response = connection.getresponse()
        document = response.read()
    finally:
        connection.close()
    if response.status == 200:
        return 200, ""
    error = json.loads(document)
    return response.status, error.get("reason") or error["details"][0]["debug"]["reason"]


def ask_grpc(server: Any, attack: Attack, token: str, content: bytes) -> tuple[int, str]:
    with grpc.insecure_channel(urlsplit(server.grpc).netloc) as channel:
        call: Any = channel.unary_unary(attack.path)
        try:
            call(content, metadata=(("authorization", f"Bearer {token}"),), timeout=120)
        except grpc.RpcError as error:
            metadata: Any = error.trailing_metadata() or ()
            return error.code().value[0], reason_in(
                dict(metadata).get("grpc-status-details-bin", b"")
            )
        return 0, ""


def reason_in(details: str | bytes) -> str:
    assert isinstance(details, bytes)
    known = (LIMIT, INVALID, MALFORMED, "PERMISSION_DENIED", "NO_KEYS")
    return next((reason for reason in known if reason.encode() in details), repr(details))


class Others:
    """Another client, who asks all the time; `longest` is what one answer took."""

    def __init__(self, guarded: Guarded) -> None:
        self.longest = 0.0
        self.count = 0
        self._guarded = guarded
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        while not self.count:
            time.sleep(0.001)
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _ask(self) -> None:
        server = self._guarded.server
        address = urlsplit(server.http)
        try:
            connection = http.client.HTTPConnection(address.hostname or "", address.port)
            with Client(server.http, token=self._guarded.tokens["reader"]) as client:
                client.lookup("items", [1])
                while not self._stop.is_set():
                    begin = time.perf_counter()
                    connection.request("GET", "/healthz")
                    assert connection.getresponse().read()
                    between = time.perf_counter()
                    np.testing.assert_array_equal(client.lookup("items", [1]), [[4, 5, 6, 7]])
                    end = time.perf_counter()
                    self.longest = max(self.longest, between - begin, end - between)
                    self.count += 1
                    time.sleep(0.003)
            connection.close()
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            self._failure = error
            self.count += 1


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_one_request_stops_nobody_and_is_refused_by_what_it_has_too_much_of(
    attack: Attack, guarded: Guarded
) -> None:
    body = attack.body()
    is_gzipped = attack.wire in ("rest", "connect-json", "connect")
    content = gzip.compress(body, 1) if is_gzipped else body
    ask = ask_grpc if attack.wire == "grpc" else ask_http
    for left in reversed(range(TRIES)):
        with Others(guarded) as others:
            _, reason = ask(guarded.server, attack, guarded.tokens[attack.token], content)
        if attack.reason:
            assert reason == attack.reason
        if others.longest < WAIT_SECONDS_MAX:
            break
        assert left, f"others waited {others.longest:.3f} s"


def test_several_at_once_of_what_takes_longest_stop_nobody(guarded: Guarded) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == "ids and a bool")
    content = gzip.compress(attack.body(), 1)
    token = guarded.tokens["all"]
    for left in reversed(range(TRIES)):
        with Others(guarded) as others, ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(ask_http, guarded.server, attack, token, content) for _ in range(8)
            ]
            assert {one.result() for one in asked} == {(422, INVALID)}
        if others.longest < WAIT_SECONDS_MAX:
            break
        assert left, f"others waited {others.longest:.3f} s"


@pytest.mark.parametrize("wire", ["http", "grpc", "local"])
@pytest.mark.parametrize("shape", [(0, 2**62), (2**62, 0), (2**31, 0, 2**31)], ids=str)
def test_the_sdk_names_a_shape_that_nobody_can_count(
    shape: tuple[int, ...], wire: str, guarded: Guarded
) -> None:
    ids: Any = np.lib.stride_tricks.as_strided(np.empty(0, np.int8), shape, (0,) * len(shape))
    local = f"local:{guarded.data_dir}"
    url = local if wire == "local" else getattr(guarded.server, wire)
    token = None if wire == "local" else guarded.tokens["all"]
    with Client(url, token=token) as client:
        for ask in (
            lambda: client.lookup("items", ids),
            lambda: client.lookup("items", keys=ids),
            lambda: client.lookup_many({"items": ids}),
            lambda: client.keys_of("items", ids),
        ):
            with pytest.raises(InvalidArgument, match="beside a dimension of 0"):
                ask()
        # What can be counted is answered.
        assert client.lookup("items", np.empty((0, 2**30), np.int8)).shape == (0, 2**30, 4)


def test_a_gzipped_message_over_grpc_inflates_to_what_a_request_may_have(guarded: Guarded) -> None:
    body = field(15, bytes(100 * MEBI))
    token = (("authorization", f"Bearer {guarded.tokens['all']}"),)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(urlsplit(guarded.server.grpc).netloc, options) as channel:
        call: Any = channel.unary_unary(EMBEDDING + "Lookup")
        with pytest.raises(grpc.RpcError) as refused:
            call(body, metadata=token, compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
