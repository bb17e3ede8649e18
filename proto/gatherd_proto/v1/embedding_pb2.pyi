from gatherd_proto.v1 import status_pb2 as _status_pb2
from gatherd_proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Missing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISSING_UNSPECIFIED: _ClassVar[Missing]
    MISSING_ERROR: _ClassVar[Missing]
    MISSING_ZERO: _ClassVar[Missing]
    MISSING_DEFAULT: _ClassVar[Missing]
MISSING_UNSPECIFIED: Missing
MISSING_ERROR: Missing
MISSING_ZERO: Missing
MISSING_DEFAULT: Missing

class LookupRequest(_message.Message):
    __slots__ = ("table", "ids", "dtype", "missing", "version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: _tensor_pb2.Tensor
    dtype: _tensor_pb2.DType
    missing: Missing
    version: int
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., missing: _Optional[_Union[Missing, str]] = ..., version: _Optional[int] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("version", "status", "vectors")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    version: int
    status: bytes
    vectors: _tensor_pb2.Tensor
    def __init__(self, version: _Optional[int] = ..., status: _Optional[bytes] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class LookupManyRequest(_message.Message):
    __slots__ = ("lookups",)
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    lookups: _containers.RepeatedCompositeFieldContainer[LookupRequest]
    def __init__(self, lookups: _Optional[_Iterable[_Union[LookupRequest, _Mapping]]] = ...) -> None: ...

class LookupManyResponse(_message.Message):
    __slots__ = ("lookups",)
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    lookups: _containers.RepeatedCompositeFieldContainer[LookupResponse]
    def __init__(self, lookups: _Optional[_Iterable[_Union[LookupResponse, _Mapping]]] = ...) -> None: ...

class LookupStreamRequest(_message.Message):
    __slots__ = ("id", "lookup")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    id: int
    lookup: LookupRequest
    def __init__(self, id: _Optional[int] = ..., lookup: _Optional[_Union[LookupRequest, _Mapping]] = ...) -> None: ...

class LookupStreamResponse(_message.Message):
    __slots__ = ("id", "lookup", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    lookup: LookupResponse
    error: _status_pb2.Status
    def __init__(self, id: _Optional[int] = ..., lookup: _Optional[_Union[LookupResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
