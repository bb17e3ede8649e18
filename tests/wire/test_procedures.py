"""The list of procedures is what the .proto files say, and each wire answers what is in it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest

from gatherd_proto.procedures import PATH_PREFIX, PROCEDURES, SERVICES
from gatherd_proto.v1 import embedding_pb2, table_pb2, upload_pb2
from gatherd_server.http.app import create_app
from gatherd_server.rpc.server import RpcServer
from support.small_engine import SmallEngine, small_engine

METHODS = [
    method
    for file in (embedding_pb2.DESCRIPTOR, table_pb2.DESCRIPTOR, upload_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]
NAMES = {method.name for method in METHODS} | {"Nope"}
PATHS = {f"/{service}/{name}" for service in SERVICES for name in NAMES}
# What Connect has no way to carry.
STREAMS = {procedure.path for procedure in PROCEDURES if procedure.is_stream}
ALL = {procedure.path for procedure in PROCEDURES}

Codes = Callable[[str], str]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def connect(small: SmallEngine) -> Iterator[Codes]:
    """The code that an empty message to a path is answered with, "ok" for a reply."""
    app = httpx.ASGITransport(create_app(small.engine, small.admission, small.offload))
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=app, base_url="http://gatherd.test")

        def code(path: str) -> str:
            headers = {"content-type": "application/proto"}
            answer = runner.run(client.post(path, headers=headers))
            return "ok" if answer.status_code == 200 else answer.json()["code"]

        yield code
        runner.run(client.aclose())


@pytest.fixture(scope="module")
def rpc(small: SmallEngine) -> Iterator[Codes]:
    """As `connect`'s; a stream gets one message, too."""
    server = RpcServer(
        small.engine,
        small.admission,
        address="127.0.0.1:0",
        threads=4,
        streams_max=2,
        reflection=False,
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}") as channel:

        def code(path: str) -> str:
            call: Any = channel.stream_stream(path)
            try:
                list(call(iter([b""])))
            except grpc.RpcError as error:
                return error.code().name.lower()
            return "ok"

        yield code
    server.stop(1)


def test_the_list_is_what_the_descriptors_say() -> None:
    listed = [
        (
            procedure.path,
            procedure.request.DESCRIPTOR.full_name,
            procedure.reply.DESCRIPTOR.full_name,
            procedure.is_stream,
        )
        for procedure in PROCEDURES
    ]
    described = [
        (
            f"/{method.containing_service.full_name}/{method.name}",
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming and method.server_streaming,
        )
        for method in METHODS
    ]
    assert sorted(listed) == sorted(described)
    assert sorted(SERVICES) == sorted({method.containing_service.full_name for method in METHODS})
    assert all(procedure.path.startswith(PATH_PREFIX) for procedure in PROCEDURES)


def test_connect_answers_every_unary_procedure_and_no_other(connect: Codes) -> None:
    assert {path for path in PATHS if connect(path) != "unimplemented"} == ALL - STREAMS


def test_grpc_answers_every_procedure_and_no_other(rpc: Codes) -> None:
    assert {path for path in PATHS if rpc(path) != "unimplemented"} == ALL
