"""Every procedure of gatherd.v1, once: a client calls these, and a server answers them.

A path is the same over Connect and gRPC. The server's wire/procedures.py has its answer to each; a
test compares this list with the services' descriptors.
"""

from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from gatherd_proto.v1 import embedding_pb2, table_pb2, upload_pb2

PATH_PREFIX: Final = "/gatherd.v1."
"""The prefix of every path, and of no path of REST."""
EMBEDDING_SERVICE: Final = "gatherd.v1.EmbeddingService"
TABLE_SERVICE: Final = "gatherd.v1.TableService"
UPLOAD_SERVICE: Final = "gatherd.v1.UploadService"
SERVICES: Final = (EMBEDDING_SERVICE, TABLE_SERVICE, UPLOAD_SERVICE)


@dataclass(frozen=True, slots=True)
class Procedure:
    """A method of a service, with its request and reply messages."""

    service: str
    name: str
    request: type[Message]
    reply: type[Message]
    is_stream: bool = False
    """Whether both sides send as many messages as they like; Connect has no such procedure."""
    path: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")


def _lookup(name: str, request: type[Message], reply: type[Message]) -> Procedure:
    return Procedure(EMBEDDING_SERVICE, name, request, reply)


def _push(name: str) -> Procedure:
    request, reply = embedding_pb2.UpdateRequest, embedding_pb2.UpdateResponse
    return Procedure(EMBEDDING_SERVICE, name, request, reply)


def _table(name: str, request: type[Message], reply: type[Message]) -> Procedure:
    return Procedure(TABLE_SERVICE, name, request, reply)


def _upload(name: str, request: type[Message], reply: type[Message]) -> Procedure:
    return Procedure(UPLOAD_SERVICE, name, request, reply)


_e, _t, _u = embedding_pb2, table_pb2, upload_pb2

LOOKUP: Final = _lookup("Lookup", _e.LookupRequest, _e.LookupResponse)
LOOKUP_MANY: Final = _lookup("LookupMany", _e.LookupManyRequest, _e.LookupManyResponse)
LOOKUP_BAGS: Final = _lookup("LookupBags", _e.LookupBagsRequest, _e.LookupResponse)
LOOKUP_BAGS_MANY: Final = _lookup("LookupBagsMany", _e.LookupBagsManyRequest, _e.LookupManyResponse)
LOOKUP_STREAM: Final = Procedure(
    EMBEDDING_SERVICE, "LookupStream", _e.LookupStreamRequest, _e.LookupStreamResponse, True
)
KEYS_OF: Final = _lookup("KeysOf", _e.KeysOfRequest, _e.KeysOfResponse)
IDS_OF: Final = _lookup("IdsOf", _e.IdsOfRequest, _e.IdsOfResponse)
LIST_KEYS: Final = _lookup("ListKeys", _e.ListKeysRequest, _e.ListKeysResponse)
SCAN: Final = _lookup("Scan", _e.ScanRequest, _e.ScanResponse)
NEIGHBORS: Final = _lookup("Neighbors", _e.NeighborsRequest, _e.NeighborsResponse)
SCATTER_ADD: Final = _push("ScatterAdd")
APPLY_GRADIENTS: Final = _push("ApplyGradients")
ASSIGN: Final = _push("Assign")
DELETE_ROWS: Final = _push("DeleteRows")

LIST_TABLES: Final = _table("ListTables", _t.ListTablesRequest, _t.ListTablesResponse)
GET_TABLE: Final = _table("GetTable", _t.GetTableRequest, _t.GetTableResponse)
CREATE_TABLE: Final = _table("CreateTable", _t.CreateTableRequest, _t.ChangeResponse)
DELETE_TABLE: Final = _table("DeleteTable", _t.DeleteTableRequest, _t.ChangeResponse)
PUBLISH: Final = _table("Publish", _t.PublishRequest, _t.ChangeResponse)
ROLLBACK: Final = _table("Rollback", _t.RollbackRequest, _t.ChangeResponse)
SET_OPTIMIZER: Final = _table("SetOptimizer", _t.SetOptimizerRequest, _t.ChangeResponse)
SNAPSHOT: Final = _table("Snapshot", _t.SnapshotRequest, _t.SnapshotResponse)
DELETE_VERSION: Final = _table("DeleteVersion", _t.DeleteVersionRequest, _t.ChangeResponse)
GET_SERVER: Final = _table("GetServer", _t.GetServerRequest, _t.GetServerResponse)
LIST_SNAPSHOTS: Final = _table("ListSnapshots", _t.ListSnapshotsRequest, _t.ListSnapshotsResponse)
DELETE_SNAPSHOT: Final = _table(
    "DeleteSnapshot", _t.DeleteSnapshotRequest, _t.DeleteSnapshotResponse
)

BEGIN_UPLOAD: Final = _upload("BeginUpload", _u.BeginUploadRequest, _u.GetUploadResponse)
PUT_CHUNK: Final = _upload("PutChunk", _u.PutChunkRequest, _u.PutChunkResponse)
GET_UPLOAD: Final = _upload("GetUpload", _u.GetUploadRequest, _u.GetUploadResponse)
LIST_UPLOADS: Final = _upload("ListUploads", _u.ListUploadsRequest, _u.ListUploadsResponse)
COMMIT_UPLOAD: Final = _upload("CommitUpload", _u.CommitUploadRequest, _u.CommitUploadResponse)
CANCEL_UPLOAD: Final = _upload("CancelUpload", _u.CancelUploadRequest, _u.CancelUploadResponse)

PROCEDURES: Final = (
    *(LOOKUP, LOOKUP_MANY, LOOKUP_BAGS, LOOKUP_BAGS_MANY, LOOKUP_STREAM),
    *(KEYS_OF, IDS_OF, LIST_KEYS, SCAN, NEIGHBORS),
    *(SCATTER_ADD, APPLY_GRADIENTS, ASSIGN, DELETE_ROWS),
    *(LIST_TABLES, GET_TABLE, CREATE_TABLE, DELETE_TABLE, PUBLISH, ROLLBACK, SET_OPTIMIZER),
    *(SNAPSHOT, DELETE_VERSION, GET_SERVER, LIST_SNAPSHOTS, DELETE_SNAPSHOT),
    *(BEGIN_UPLOAD, PUT_CHUNK, GET_UPLOAD, LIST_UPLOADS, COMMIT_UPLOAD, CANCEL_UPLOAD),
)
