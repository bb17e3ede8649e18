"""The procedures of both services, as the Connect endpoint runs them.

A lookup is work of this process. An update or a change is handed to the writer, and its answer is
waited for.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from gatherd_proto.v1 import embedding_pb2, table_pb2
from gatherd_server.access.callers import AnyEngine, Scope
from gatherd_server.engine.engine import KEYS_SHORT
from gatherd_server.types import Limits, Lookup, TableChange, UpdateOp
from gatherd_server.wire import lookups, updates
from gatherd_server.wire.lookups import Part

_EMBEDDING: Final = "/gatherd.v1.EmbeddingService/"
_TABLES: Final = "/gatherd.v1.TableService/"


@dataclass(frozen=True, slots=True)
class Work:
    """An answer that is known to be possible and still has to be made."""

    run: Callable[[], list[Part]]
    is_long: bool = False


@dataclass(frozen=True, slots=True)
class Procedure:
    """One that this process answers by itself."""

    path: str
    request: type[Message]
    reply: type[Message]
    work: Callable[[AnyEngine, Any], Work]
    is_admitted: bool = True
    """Whether it holds a place among the requests in flight."""
    scope: Scope | None = Scope.READ
    """What a caller has to be for; None for any scope that is for tables."""


@dataclass(frozen=True, slots=True)
class UpdateProcedure:
    """One that the writer does. `begin` hands it over, and `encode` gives the reply's bytes."""

    path: str
    request: type[Message]
    reply: type[Message]
    begin: Callable[[AnyEngine, Any], Future[Any]]
    encode: Callable[[Any], bytes]
    scope: Scope = Scope.ADMIN

    @property
    def has_request_id(self) -> bool:
        """Whether it is done once however often it is sent."""
        return self.request is embedding_pb2.UpdateRequest


def procedures(limits: Limits) -> list[Procedure | UpdateProcedure]:
    """Every unary procedure of both services; each is given the engine as its caller has it."""
    return [
        *_lookups(),
        *_tables(limits),
        _push("ScatterAdd", UpdateOp.SCATTER_ADD),
        _push("ApplyGradients", UpdateOp.APPLY_GRADIENTS),
        _push("Assign", UpdateOp.ASSIGN),
        _change("CreateTable", updates.create_table),
        _change("DeleteTable", updates.delete_table),
        _change("Publish", updates.publish),
        _change("Rollback", updates.rollback),
        _change("SetOptimizer", updates.set_optimizer),
        UpdateProcedure(
            _TABLES + "Snapshot",
            table_pb2.SnapshotRequest,
            table_pb2.SnapshotResponse,
            lambda engine, request: engine.snapshot(updates.snapshot_name(request)),
            updates.snapshot_reply,
        ),
    ]


def _push(name: str, op: UpdateOp) -> UpdateProcedure:
    return UpdateProcedure(
        _EMBEDDING + name,
        embedding_pb2.UpdateRequest,
        embedding_pb2.UpdateResponse,
        lambda engine, request: engine.push(updates.push(op, request, engine.limits)),
        updates.push_reply,
        Scope.UPDATE,
    )


def _change(name: str, read: Callable[[Any], TableChange]) -> UpdateProcedure:
    return UpdateProcedure(
        _TABLES + name,
        getattr(table_pb2, f"{name}Request"),
        table_pb2.ChangeResponse,
        lambda engine, request: engine.change(read(request)),
        updates.change_reply,
    )


def _lookups() -> list[Procedure]:
    def one(engine: AnyEngine, plan: Lookup) -> Work:
        prepared = engine.prepare([plan])
        return Work(lambda: lookups.lookup_reply(prepared.run()[0]), prepared.is_long)

    def many(engine: AnyEngine, plans: list[Lookup]) -> Work:
        prepared = engine.prepare(plans)
        return Work(lambda: lookups.lookup_many_reply(prepared.run()), prepared.is_long)

    def keys_of(engine: AnyEngine, request: embedding_pb2.KeysOfRequest) -> Work:
        asked = lookups.keys_of_request(request)

        def run() -> list[Part]:
            keys, version = engine.keys_of(*asked)
            return [lookups.keys_reply(keys, version)]

        return Work(run, asked[1].size > KEYS_SHORT)

    def procedure(
        name: str, reply: type[Message], work: Callable[[AnyEngine, Any], Work]
    ) -> Procedure:
        request: type[Message] = getattr(embedding_pb2, f"{name}Request")
        return Procedure(_EMBEDDING + name, request, reply, work)

    response, many_response = embedding_pb2.LookupResponse, embedding_pb2.LookupManyResponse
    plan, bags = lookups.lookup_plan, lookups.bags_plan
    return [
        procedure("Lookup", response, lambda engine, request: one(engine, plan(request))),
        procedure(
            "LookupMany",
            many_response,
            lambda engine, request: many(engine, lookups.lookup_plans(request, engine.limits)),
        ),
        procedure("LookupBags", response, lambda engine, request: one(engine, bags(request))),
        procedure(
            "LookupBagsMany",
            many_response,
            lambda engine, request: many(engine, lookups.bags_plans(request, engine.limits)),
        ),
        procedure("KeysOf", embedding_pb2.KeysOfResponse, keys_of),
    ]


def _tables(limits: Limits) -> list[Procedure]:
    def list_tables(engine: AnyEngine, _request: table_pb2.ListTablesRequest) -> Work:
        reply = lookups.list_tables_reply(engine.tables(), limits)
        return Work(lambda: [reply])

    def get_table(engine: AnyEngine, request: table_pb2.GetTableRequest) -> Work:
        reply = lookups.get_table_reply(engine.table(request.table), limits)
        return Work(lambda: [reply])

    return [
        Procedure(
            _TABLES + "ListTables",
            table_pb2.ListTablesRequest,
            table_pb2.ListTablesResponse,
            list_tables,
            is_admitted=False,
            scope=None,
        ),
        Procedure(
            _TABLES + "GetTable",
            table_pb2.GetTableRequest,
            table_pb2.GetTableResponse,
            get_table,
            is_admitted=False,
            scope=None,
        ),
    ]
