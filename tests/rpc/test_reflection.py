"""Reflection, when asked for, as v1 and as v1alpha."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import status_pb2
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from gatherd_proto.procedures import PROCEDURES
from gatherd_server.rpc.server import RpcServer
from support.small_engine import SmallEngine, small_engine

PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
SERVED = {
    *(f"gatherd.v1.{name}Service" for name in ("Embedding", "Table", "Upload")),
    "grpc.health.v1.Health",
    *(f"{package}.ServerReflection" for package in PACKAGES),
}

Ask = Callable[..., Any]


def served(small: SmallEngine, reflection: bool) -> RpcServer:
    return RpcServer(
        small.engine,
        small.admission,
        address="127.0.0.1:0",
        threads=2,
        streams_max=1,
        reflection=reflection,
    )


def asking(channel: grpc.Channel, package: str) -> Ask:
    """The two packages have the same messages, so one's are sent to both."""
    call = channel.stream_stream(
        f"/{package}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**about: str) -> Any:
        (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**about)]))
        return answer

    return ask


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module", params=PACKAGES)
def ask(request: pytest.FixtureRequest, small: SmallEngine) -> Iterator[Ask]:
    server = served(small, reflection=True)
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        yield asking(channel, request.param)
    server.stop(0)


def described(answer: Any) -> DescriptorPool:
    """A pool with what was answered; it takes no file before those that it imports."""
    files = [
        FileDescriptorProto.FromString(file)
        for file in answer.file_descriptor_response.file_descriptor_proto
    ]
    by_name = {file.name: file for file in files}
    pool = DescriptorPool()

    def add(file: FileDescriptorProto) -> None:
        for name in file.dependency:
            if name in by_name:
                add(by_name.pop(name))
        pool.Add(file)

    while by_name:
        add(by_name.pop(next(iter(by_name))))
    return pool


def test_every_listed_service_is_described(ask: Ask) -> None:
    listed = {service.name for service in ask(list_services="").list_services_response.service}
    assert listed == SERVED
    for name in listed:
        service = described(ask(file_containing_symbol=name)).FindServiceByName(name)
        assert service.methods


def test_each_procedure_is_described_with_its_messages(ask: Ask) -> None:
    for procedure in PROCEDURES:
        pool = described(ask(file_containing_symbol=procedure.service))
        method = pool.FindServiceByName(procedure.service).methods_by_name[procedure.name]
        assert method.input_type.full_name == procedure.request.DESCRIPTOR.full_name
        assert method.output_type.full_name == procedure.reply.DESCRIPTOR.full_name


def test_reflection_describes_itself_in_each_package(ask: Ask) -> None:
    for package in PACKAGES:
        name = f"{package}.ServerReflection"
        pool = described(ask(file_containing_symbol=name))
        (method,) = pool.FindServiceByName(name).methods
        assert method.input_type.full_name == f"{package}.ServerReflectionRequest"
        assert method.output_type.full_name == f"{package}.ServerReflectionResponse"
        told: Any = method.output_type.fields_by_name["list_services_response"].message_type
        assert told.full_name == f"{package}.ListServiceResponse"


def test_the_details_of_errors_are_described_and_nothing_else_of_the_process(ask: Ask) -> None:
    info = described(ask(file_containing_symbol="google.rpc.ErrorInfo"))
    assert info.FindMessageTypeByName("google.rpc.ErrorInfo").fields_by_name["reason"].number == 1
    loaded = status_pb2.Status.DESCRIPTOR.full_name
    answer = ask(file_containing_symbol=loaded)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_reflection_is_off_unless_asked_for(package: str, small: SmallEngine) -> None:
    server = served(small, reflection=False)
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            asking(channel, package)(list_services="")
    server.stop(0)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
