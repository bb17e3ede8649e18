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
    MISSING_SKIP: _ClassVar[Missing]
    MISSING_INIT: _ClassVar[Missing]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_SUM: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_MAX: _ClassVar[Pooling]
    POOLING_SQRTN: _ClassVar[Pooling]

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_DOT: _ClassVar[Metric]
    METRIC_L2: _ClassVar[Metric]
MISSING_UNSPECIFIED: Missing
MISSING_ERROR: Missing
MISSING_ZERO: Missing
MISSING_DEFAULT: Missing
MISSING_SKIP: Missing
MISSING_INIT: Missing
POOLING_UNSPECIFIED: Pooling
POOLING_SUM: Pooling
POOLING_MEAN: Pooling
POOLING_MAX: Pooling
POOLING_SQRTN: Pooling
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_DOT: Metric
METRIC_L2: Metric

class LookupRequest(_message.Message):
    __slots__ = ("table", "ids", "keys", "dtype", "missing", "version", "dims", "normalize", "with_lsn")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    WITH_LSN_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: _tensor_pb2.Tensor
    keys: _tensor_pb2.Keys
    dtype: _tensor_pb2.DType
    missing: Missing
    version: int
    dims: int
    normalize: bool
    with_lsn: bool
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., missing: _Optional[_Union[Missing, str]] = ..., version: _Optional[int] = ..., dims: _Optional[int] = ..., normalize: _Optional[bool] = ..., with_lsn: _Optional[bool] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("version", "status", "vectors", "lsn", "normalized")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    version: int
    status: bytes
    vectors: _tensor_pb2.Tensor
    lsn: int
    normalized: bool
    def __init__(self, version: _Optional[int] = ..., status: _Optional[bytes] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., lsn: _Optional[int] = ..., normalized: _Optional[bool] = ...) -> None: ...

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

class LookupBagsRequest(_message.Message):
    __slots__ = ("lookup", "offsets", "pooling", "weights", "padding_id")
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PADDING_ID_FIELD_NUMBER: _ClassVar[int]
    lookup: LookupRequest
    offsets: _tensor_pb2.Tensor
    pooling: Pooling
    weights: _tensor_pb2.Tensor
    padding_id: int
    def __init__(self, lookup: _Optional[_Union[LookupRequest, _Mapping]] = ..., offsets: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., padding_id: _Optional[int] = ...) -> None: ...

class LookupBagsManyRequest(_message.Message):
    __slots__ = ("bags",)
    BAGS_FIELD_NUMBER: _ClassVar[int]
    bags: _containers.RepeatedCompositeFieldContainer[LookupBagsRequest]
    def __init__(self, bags: _Optional[_Iterable[_Union[LookupBagsRequest, _Mapping]]] = ...) -> None: ...

class KeysOfRequest(_message.Message):
    __slots__ = ("table", "ids", "version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: _tensor_pb2.Tensor
    version: int
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class KeysOfResponse(_message.Message):
    __slots__ = ("version", "keys")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    version: int
    keys: _tensor_pb2.Keys
    def __init__(self, version: _Optional[int] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ...) -> None: ...

class IdsOfRequest(_message.Message):
    __slots__ = ("table", "keys", "version", "allow_missing")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    table: str
    keys: _tensor_pb2.Keys
    version: int
    allow_missing: bool
    def __init__(self, table: _Optional[str] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., version: _Optional[int] = ..., allow_missing: _Optional[bool] = ...) -> None: ...

class IdsOfResponse(_message.Message):
    __slots__ = ("version", "ids")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    ids: _tensor_pb2.Tensor
    def __init__(self, version: _Optional[int] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ("table", "prefix", "limit", "start", "version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    prefix: bytes
    limit: int
    start: int
    version: int
    def __init__(self, table: _Optional[str] = ..., prefix: _Optional[bytes] = ..., limit: _Optional[int] = ..., start: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("version", "keys", "ids", "next")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    version: int
    keys: _tensor_pb2.Keys
    ids: _tensor_pb2.Tensor
    next: int
    def __init__(self, version: _Optional[int] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., next: _Optional[int] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("table", "version", "cursor", "limit", "prefix", "dtype", "with_slots")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WITH_SLOTS_FIELD_NUMBER: _ClassVar[int]
    table: str
    version: int
    cursor: bytes
    limit: int
    prefix: bytes
    dtype: _tensor_pb2.DType
    with_slots: bool
    def __init__(self, table: _Optional[str] = ..., version: _Optional[int] = ..., cursor: _Optional[bytes] = ..., limit: _Optional[int] = ..., prefix: _Optional[bytes] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., with_slots: _Optional[bool] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("version", "ids", "keys", "vectors", "slots", "cursor")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    version: int
    ids: _tensor_pb2.Tensor
    keys: _tensor_pb2.Keys
    vectors: _tensor_pb2.Tensor
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    cursor: bytes
    def __init__(self, version: _Optional[int] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., cursor: _Optional[bytes] = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _tensor_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class NeighborsRequest(_message.Message):
    __slots__ = ("table", "ids", "keys", "vectors", "k", "metric", "version", "include_self")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SELF_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: _tensor_pb2.Tensor
    keys: _tensor_pb2.Keys
    vectors: _tensor_pb2.Tensor
    k: int
    metric: Metric
    version: int
    include_self: bool
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., k: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., version: _Optional[int] = ..., include_self: _Optional[bool] = ...) -> None: ...

class NeighborsResponse(_message.Message):
    __slots__ = ("version", "ids", "scores", "keys")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    version: int
    ids: _tensor_pb2.Tensor
    scores: _tensor_pb2.Tensor
    keys: _tensor_pb2.Keys
    def __init__(self, version: _Optional[int] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ...) -> None: ...

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

class UpdateRequest(_message.Message):
    __slots__ = ("updates", "sequence", "idempotency_key")
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[TableUpdate]
    sequence: SessionSequence
    idempotency_key: str
    def __init__(self, updates: _Optional[_Iterable[_Union[TableUpdate, _Mapping]]] = ..., sequence: _Optional[_Union[SessionSequence, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class SessionSequence(_message.Message):
    __slots__ = ("session", "sequence")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sequence: int
    def __init__(self, session: _Optional[bytes] = ..., sequence: _Optional[int] = ...) -> None: ...

class TableUpdate(_message.Message):
    __slots__ = ("table", "ids", "keys", "values", "learning_rate", "if_version", "create")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: _tensor_pb2.Tensor
    keys: _tensor_pb2.Keys
    values: _tensor_pb2.Tensor
    learning_rate: float
    if_version: int
    create: bool
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., keys: _Optional[_Union[_tensor_pb2.Keys, _Mapping]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., learning_rate: _Optional[float] = ..., if_version: _Optional[int] = ..., create: _Optional[bool] = ...) -> None: ...

class UpdateResponse(_message.Message):
    __slots__ = ("lsn", "versions", "created", "removed", "not_admitted")
    LSN_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    NOT_ADMITTED_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    created: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    not_admitted: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lsn: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., created: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ..., not_admitted: _Optional[_Iterable[int]] = ...) -> None: ...
