"""How each procedure of gatherd.v1 is answered; the Connect endpoint and gRPC are built from it.

This process does lookups itself. It hands an update or a change to the writer, and waits for the
answer. Left out on purpose: LookupStream, which only gRPC has, and answers by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from gatherd.store.table import Gathered
from gatherd_proto import procedures as proto
from gatherd_proto.procedures import Procedure
from gatherd_proto.v1 import embedding_pb2, table_pb2
from gatherd_server.access.admission import Admission, Place
from gatherd_server.access.callers import AnyEngine, Scope
from gatherd_server.access.uploads import AnyUploads
from gatherd_server.engine.engine import KEYS_SHORT
from gatherd_server.engine.searching import Stopping
from gatherd_server.types import Limits, Lookup, TableChange, UpdateOp
from gatherd_server.wire import lookups, neighbors, scans, tables, updates, uploads
from gatherd_server.wire.checks import (
    CHANGE_MAY_BE_DONE,
    UPDATE_MAY_BE_DONE,
    UPLOAD_MAY_BE_DONE,
)
from gatherd_server.wire.compiled import answers as compiled
from gatherd_server.wire.lookups import Part


@dataclass(frozen=True, slots=True)
class PreparedReply:
    """A reply that can be given, and still has to be made."""

    make: Callable[[], list[Part]]
    is_long: bool = False
    stopping: Stopping | None = None
    """Ends the making early, for a reply that takes long without any bound on its time."""


@dataclass(frozen=True, slots=True)
class ReadProcedure:
    """A procedure that this process answers by itself."""

    procedure: Procedure
    prepare: Callable[[AnyEngine, Any], PreparedReply]
    is_admitted: bool = True
    """Whether it holds a place among the requests in flight."""
    scope: Scope | None = Scope.READ
    """The scope that a caller needs; None for any scope that concerns tables."""

    def place(self, admission: Admission) -> Place:
        """The place that its requests hold while they are answered."""
        return admission.request if self.is_admitted else admission.unplaced


@dataclass(frozen=True, slots=True)
class UpdateProcedure:
    """A procedure of the writer. `begin` hands it over; `encode` gives the reply's bytes."""

    procedure: Procedure
    begin: Callable[[AnyEngine, Any], Future[Any]]
    encode: Callable[[Any], bytes]
    scope: Scope = Scope.ADMIN
    may_be_done: str = CHANGE_MAY_BE_DONE
    """The text for a caller whose time is up before the writer's answer."""

    def place(self, admission: Admission) -> Place:
        """The place that its requests hold: they wait for a disk; lookups mustn't wait for them."""
        return admission.update


@dataclass(frozen=True, slots=True)
class Lookups:
    """Reads a request as lookups, and writes their gathered rows."""

    read: Callable[[Any, Limits], list[Lookup]]
    encode: Callable[[Sequence[Gathered]], list[Part]]

    def prepare(self, engine: AnyEngine, request: Any) -> PreparedReply:
        """The reply to `request`. Raises the errors of `read` and of the engine."""
        prepared = engine.prepare(self.read(request, engine.limits))
        return PreparedReply(lambda: self.encode(prepared.run()), prepared.is_long)


def _one_reply(gathered: Sequence[Gathered]) -> list[Part]:
    return lookups.lookup_reply(gathered[0])


LOOKUPS: Final[Mapping[Procedure, Lookups]] = {
    proto.LOOKUP: Lookups(lambda request, _: [lookups.lookup_of(request)], _one_reply),
    proto.LOOKUP_MANY: Lookups(lookups.lookups_of, lookups.lookup_many_reply),
    proto.LOOKUP_BAGS: Lookups(lambda request, _: [lookups.bag_lookup_of(request)], _one_reply),
    proto.LOOKUP_BAGS_MANY: Lookups(lookups.bag_lookups_of, lookups.lookup_many_reply),
}

COMPILED: Final[Mapping[Procedure, int]] = {
    proto.LOOKUP: compiled.LOOKUP,
    proto.LOOKUP_MANY: compiled.LOOKUP_MANY,
    proto.LOOKUP_BAGS: compiled.LOOKUP_BAGS,
    proto.LOOKUP_BAGS_MANY: compiled.LOOKUP_BAGS_MANY,
}
"""The procedures that the compiled answer is asked first, as the number of their request."""


def _keys_of(engine: AnyEngine, request: embedding_pb2.KeysOfRequest) -> PreparedReply:
    asked = lookups.keys_of_request(request)

    def make() -> list[Part]:
        keys, version = engine.keys_of(*asked)
        return [lookups.keys_reply(keys, version)]

    return PreparedReply(make, asked[1].size > KEYS_SHORT)


def _ids_of(engine: AnyEngine, request: embedding_pb2.IdsOfRequest) -> PreparedReply:
    table, keys, version = lookups.ids_of_request(request)

    def make() -> list[Part]:
        found = engine.ids_of(table, keys, version, allow_missing=request.allow_missing)
        return [lookups.ids_reply(*found)]

    return PreparedReply(make, keys.size > KEYS_SHORT)


def _list_keys(engine: AnyEngine, request: embedding_pb2.ListKeysRequest) -> PreparedReply:
    page = engine.prepare_keys(*lookups.list_keys_request(request))
    return PreparedReply(lambda: [lookups.list_keys_reply(page.run())], page.is_long)


def _scan(engine: AnyEngine, request: embedding_pb2.ScanRequest) -> PreparedReply:
    page = engine.prepare_scan(request.table, scans.scan_query(request))
    return PreparedReply(lambda: [scans.scan_reply(page.run())], page.is_long)


def _neighbors(engine: AnyEngine, request: embedding_pb2.NeighborsRequest) -> PreparedReply:
    query = neighbors.query_of(request)
    prepared = engine.prepare_neighbors(request.table, query, request.version)
    return PreparedReply(
        lambda: [neighbors.neighbors_reply(prepared.run())],
        is_long=True,
        stopping=prepared.stopping,
    )


def _list_tables(engine: AnyEngine, _request: table_pb2.ListTablesRequest) -> PreparedReply:
    reply = tables.list_tables_reply(engine.tables(), engine.limits)
    return PreparedReply(lambda: [reply])


def _get_table(engine: AnyEngine, request: table_pb2.GetTableRequest) -> PreparedReply:
    reply = tables.get_table_reply(engine.table(request.table), engine.limits)
    return PreparedReply(lambda: [reply])


def _get_server(engine: AnyEngine, _request: table_pb2.GetServerRequest) -> PreparedReply:
    return PreparedReply(lambda: [tables.get_server_reply(engine.server())], is_long=True)


def _push(procedure: Procedure, op: UpdateOp) -> UpdateProcedure:
    return UpdateProcedure(
        procedure,
        lambda engine, request: engine.push(updates.push(op, request, engine.limits)),
        updates.push_reply,
        Scope.UPDATE,
        UPDATE_MAY_BE_DONE,
    )


def _change(procedure: Procedure, read: Callable[[Any], TableChange]) -> UpdateProcedure:
    return UpdateProcedure(
        procedure, lambda engine, request: engine.change(read(request)), updates.change_reply
    )


def _snapshot(engine: AnyEngine, request: table_pb2.SnapshotRequest) -> Future[Any]:
    return engine.snapshot(updates.snapshot_name(request))


def _upload(
    procedure: Procedure,
    begin: Callable[[AnyUploads, Any], Future[Any]],
    encode: Callable[[Any], bytes],
) -> UpdateProcedure:
    return UpdateProcedure(
        procedure,
        lambda engine, request: begin(engine.uploads, request),
        encode,
        may_be_done=UPLOAD_MAY_BE_DONE,
    )


PUSHES: Final[Mapping[Procedure, UpdateOp]] = {
    proto.SCATTER_ADD: UpdateOp.SCATTER_ADD,
    proto.APPLY_GRADIENTS: UpdateOp.APPLY_GRADIENTS,
    proto.ASSIGN: UpdateOp.ASSIGN,
    proto.DELETE_ROWS: UpdateOp.DELETE_ROWS,
}

ANSWERED: Final[tuple[ReadProcedure | UpdateProcedure, ...]] = (
    *(ReadProcedure(procedure, way.prepare) for procedure, way in LOOKUPS.items()),
    ReadProcedure(proto.KEYS_OF, _keys_of),
    ReadProcedure(proto.IDS_OF, _ids_of),
    ReadProcedure(proto.LIST_KEYS, _list_keys),
    ReadProcedure(proto.SCAN, _scan),
    ReadProcedure(proto.NEIGHBORS, _neighbors),
    ReadProcedure(proto.LIST_TABLES, _list_tables, is_admitted=False, scope=None),
    ReadProcedure(proto.GET_TABLE, _get_table, is_admitted=False, scope=None),
    ReadProcedure(proto.GET_SERVER, _get_server, is_admitted=False, scope=None),
    *(_push(procedure, op) for procedure, op in PUSHES.items()),
    _change(proto.CREATE_TABLE, updates.create_table),
    _change(proto.DELETE_TABLE, updates.delete_table),
    _change(proto.PUBLISH, updates.publish),
    _change(proto.ROLLBACK, updates.rollback),
    _change(proto.SET_OPTIMIZER, updates.set_optimizer),
    _change(proto.DELETE_VERSION, updates.delete_version),
    UpdateProcedure(proto.SNAPSHOT, _snapshot, updates.snapshot_reply),
    UpdateProcedure(
        proto.LIST_SNAPSHOTS,
        lambda engine, _request: engine.snapshots(),
        updates.list_snapshots_reply,
    ),
    UpdateProcedure(
        proto.DELETE_SNAPSHOT,
        lambda engine, request: engine.delete_snapshot(updates.deleted_snapshot(request)),
        updates.delete_snapshot_reply,
    ),
    _upload(
        proto.BEGIN_UPLOAD,
        lambda desk, request: desk.begin(*uploads.begun(request)),
        uploads.get_upload_reply,
    ),
    _upload(
        proto.PUT_CHUNK,
        lambda desk, request: desk.append(uploads.chunk(request)),
        uploads.put_chunk_reply,
    ),
    _upload(
        proto.GET_UPLOAD,
        lambda desk, request: desk.status(request.upload),
        uploads.get_upload_reply,
    ),
    _upload(proto.LIST_UPLOADS, lambda desk, _request: desk.statuses(), uploads.list_uploads_reply),
    _upload(
        proto.COMMIT_UPLOAD,
        lambda desk, request: desk.commit(request.upload),
        uploads.commit_upload_reply,
    ),
    _upload(
        proto.CANCEL_UPLOAD,
        lambda desk, request: desk.cancel(request.upload),
        uploads.cancel_upload_reply,
    ),
)
"""Every unary procedure; each gets the engine that its caller may use."""
