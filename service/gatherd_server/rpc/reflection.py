"""Reflection as grpc.reflection.v1, and as v1alpha for older tools.

grpcio-reflection has v1alpha alone. The messages of v1 are the same in another package, so its
servicer answers both. It describes the services of this server and the details of errors, but no
other file that the process happens to have loaded.
"""

from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2

# The package has no maintained type stubs.
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

ALPHA_PACKAGE: Final = "grpc.reflection.v1alpha"
PACKAGE: Final = "grpc.reflection.v1"
FILE: Final = "grpc/reflection/v1/reflection.proto"


def add_reflection(server: grpc.Server, services: Sequence[str]) -> None:
    """Have `server` describe `services`, whose stubs are loaded, and reflection itself."""
    pool = descriptor_pool.DescriptorPool()
    loaded = descriptor_pool.Default()
    files = [loaded.FindServiceByName(name).file for name in services]
    _add(pool, [*files, reflection_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR], set())
    pool.Add(_current())
    (name,) = reflection_pb2.DESCRIPTOR.services_by_name
    both = [f"{package}.{name}" for package in (PACKAGE, ALPHA_PACKAGE)]
    servicer = reflection.ReflectionServicer([*services, *both], pool=pool)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {servicer.ServerReflectionInfo.__name__: handler}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, methods) for service in both]
    )


def _add(
    pool: descriptor_pool.DescriptorPool, files: Sequence[FileDescriptor], added: set[str]
) -> None:
    """Add `files` to `pool`, each after those that it imports, and once."""
    for file in files:
        if file.name not in added:
            added.add(file.name)
            _add(pool, file.dependencies, added)
            copied = FileDescriptorProto()
            file.CopyToProto(copied)
            pool.Add(copied)


def _current() -> FileDescriptorProto:
    """The file of v1, made of v1alpha's."""
    made = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(made)
    made.name, made.package = FILE, PACKAGE
    for message in made.message_type:
        for member in message.field:
            if member.type_name:
                member.type_name = member.type_name.replace(ALPHA_PACKAGE, PACKAGE)
    for service in made.service:
        for method in service.method:
            method.input_type = method.input_type.replace(ALPHA_PACKAGE, PACKAGE)
            method.output_type = method.output_type.replace(ALPHA_PACKAGE, PACKAGE)
    return made
