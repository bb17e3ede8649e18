from gatherd_proto.v1 import table_pb2 as _table_pb2
from gatherd_proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnDuplicate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_DUPLICATE_UNSPECIFIED: _ClassVar[OnDuplicate]
    ON_DUPLICATE_ERROR: _ClassVar[OnDuplicate]
    ON_DUPLICATE_FIRST: _ClassVar[OnDuplicate]
    ON_DUPLICATE_LAST: _ClassVar[OnDuplicate]
ON_DUPLICATE_UNSPECIFIED: OnDuplicate
ON_DUPLICATE_ERROR: OnDuplicate
ON_DUPLICATE_FIRST: OnDuplicate
ON_DUPLICATE_LAST: OnDuplicate

class BeginUploadRequest(_message.Message):
    __slots__ = ("upload", "table", "dim", "dtype", "key_kind", "rows", "optimizer", "default_vector", "publish", "if_version", "allow_nonfinite", "on_duplicate", "frozen")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VECTOR_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NONFINITE_FIELD_NUMBER: _ClassVar[int]
    ON_DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    upload: str
    table: str
    dim: int
    dtype: _tensor_pb2.DType
    key_kind: str
    rows: int
    optimizer: _table_pb2.Optimizer
    default_vector: _tensor_pb2.Tensor
    publish: bool
    if_version: int
    allow_nonfinite: bool
    on_duplicate: OnDuplicate
    frozen: bool
    def __init__(self, upload: _Optional[str] = ..., table: _Optional[str] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., key_kind: _Optional[str] = ..., rows: _Optional[int] = ..., optimizer: _Optional[_Union[_table_pb2.Optimizer, _Mapping]] = ..., default_vector: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., publish: _Optional[bool] = ..., if_version: _Optional[int] = ..., allow_nonfinite: _Optional[bool] = ..., on_duplicate: _Optional[_Union[OnDuplicate, str]] = ..., frozen: _Optional[bool] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("upload", "table", "dim", "dtype", "key_kind", "rows", "publish", "next_row", "bytes", "expires_seconds", "committing")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    NEXT_ROW_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMMITTING_FIELD_NUMBER: _ClassVar[int]
    upload: str
    table: str
    dim: int
    dtype: _tensor_pb2.DType
    key_kind: str
    rows: int
    publish: bool
    next_row: int
    bytes: int
    expires_seconds: int
    committing: bool
    def __init__(self, upload: _Optional[str] = ..., table: _Optional[str] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., key_kind: _Optional[str] = ..., rows: _Optional[int] = ..., publish: _Optional[bool] = ..., next_row: _Optional[int] = ..., bytes: _Optional[int] = ..., expires_seconds: _Optional[int] = ..., committing: _Optional[bool] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("upload",)
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    upload: str
    def __init__(self, upload: _Optional[str] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("upload", "chunk_bytes_max")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    upload: Upload
    chunk_bytes_max: int
    def __init__(self, upload: _Optional[_Union[Upload, _Mapping]] = ..., chunk_bytes_max: _Optional[int] = ...) -> None: ...

class PutChunkRequest(_message.Message):
    __slots__ = ("upload", "offset", "crc32", "keys", "rows")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    upload: str
    offset: int
    crc32: int
    keys: _tensor_pb2.Keys
    rows: _tensor_pb2.Tensor
    def __init__(self, upload: _Optional[str] = ..., offset: _Optional[int] = ..., crc32: _Optional[int] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PutChunkResponse(_message.Message):
    __slots__ = ("next_row",)
    NEXT_ROW_FIELD_NUMBER: _ClassVar[int]
    next_row: int
    def __init__(self, next_row: _Optional[int] = ...) -> None: ...

class ListUploadsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListUploadsResponse(_message.Message):
    __slots__ = ("uploads",)
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    uploads: _containers.RepeatedCompositeFieldContainer[Upload]
    def __init__(self, uploads: _Optional[_Iterable[_Union[Upload, _Mapping]]] = ...) -> None: ...

class CommitUploadRequest(_message.Message):
    __slots__ = ("upload",)
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    upload: str
    def __init__(self, upload: _Optional[str] = ...) -> None: ...

class CommitUploadResponse(_message.Message):
    __slots__ = ("version", "lsn", "rows", "duplicates")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    version: int
    lsn: int
    rows: int
    duplicates: int
    def __init__(self, version: _Optional[int] = ..., lsn: _Optional[int] = ..., rows: _Optional[int] = ..., duplicates: _Optional[int] = ...) -> None: ...

class CancelUploadRequest(_message.Message):
    __slots__ = ("upload",)
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    upload: str
    def __init__(self, upload: _Optional[str] = ...) -> None: ...

class CancelUploadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
