"""Updates and changes of tables, as plans; the same for a server's URL and for local:.

A push is done once, however often it has to be sent: every try carries the same request id and the
same bytes, and the server remembers what it did. Changes have no id, so they are tried again only
when they can't have been made.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from gatherd._outcome import OUTCOME, UNKNOWN
from gatherd._plans.answering import extras, mappings
from gatherd._plans.effects import Deadline, Plan, Send
from gatherd._plans.foreseen_pushes import ForeseenPush, ForeseenPushes
from gatherd._plans.request_ids import RequestIds
from gatherd._plans.retry import Tried, Tries
from gatherd._requests.tables import (
    ChangeResult,
    ServerInfo,
    SnapshotInfo,
    SnapshotResult,
    UploadInfo,
    check_flag,
)
from gatherd._requests.updates import (
    RowsGiven,
    UpdateOp,
    UpdateResult,
    UpdateSpec,
    check_idempotency_key,
    prepare_deletes,
    prepare_update,
    prepare_updates,
)
from gatherd._wire.changes import (
    ChangeRequest,
    encode_delete_snapshot,
    encode_get_server,
    encode_list_snapshots,
    encode_snapshot,
)
from gatherd._wire.protobuf import unreadable
from gatherd._wire.updates import (
    RequestId,
    SessionSequence,
    decode_change,
    decode_delete_snapshot,
    decode_get_server,
    decode_list_snapshots,
    decode_snapshot,
    decode_update,
    encode_request_id,
    encode_update,
)
from gatherd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GatherdError,
    InternalError,
    LimitExceeded,
    NotFound,
    RequestIdStale,
    RetryableError,
    UpdatesStopped,
)
from gatherd_proto.procedures import DELETE_SNAPSHOT, GET_SERVER, LIST_SNAPSHOTS, SNAPSHOT
from gatherd_proto.v1 import table_pb2

if TYPE_CHECKING:
    from gatherd._plans.uploads import Upload

# Errors that a push can end with although an earlier try, whose answer was lost, has done it. An
# error in the push itself would have ended every try.
_UNDECIDED = (
    RetryableError, DeadlineExceeded, FailedPrecondition, NotFound, InternalError, UpdatesStopped,
)  # fmt: skip


class Pushes:
    """The calls that change something, or are about the server itself."""

    def __init__(self, tries: Tries) -> None:
        self.tries = tries
        self._ids = RequestIds()
        self._foreseen = ForeseenPushes()

    def push(
        self,
        op: UpdateOp,
        table: str,
        ids: ArrayLike | None,
        keys: ArrayLike | None,
        values: ArrayLike | None,
        *,
        lr: float | None = None,
        create: bool = False,
        if_version: int | None,
        idempotency_key: str | None,
        timeout: float | None,
    ) -> Plan[UpdateResult]:
        """The plan of Client.scatter_add, apply_gradients and assign."""
        deadline = self.tries.deadline(timeout)
        given = table, ids, values, lr, if_version
        foreseen = None if keys is not None or create else self._foreseen.find(*given)
        if foreseen is not None:
            return (yield from self._push(op, [foreseen.spec], idempotency_key, deadline, foreseen))
        spec = prepare_update(
            op, table, ids, keys, values, lr=lr, if_version=if_version, create=create
        )
        if keys is None:
            self._foreseen.learn(spec, *given)
        return (yield from self._push(op, [spec], idempotency_key, deadline))

    def push_many(
        self,
        op: UpdateOp,
        given: Mapping[str, RowsGiven] | None,
        keys: Mapping[str, RowsGiven] | None,
        *,
        lr: float | Mapping[str, float] | None = None,
        create: bool | Mapping[str, bool] = False,
        if_version: Mapping[str, int] | None,
        idempotency_key: str | None,
        timeout: float | None,
    ) -> Plan[UpdateResult]:
        """The plan of Client.scatter_add_many, apply_gradients_many and assign_many."""
        deadline = self.tries.deadline(timeout)
        call = f"{op.value}_many"
        by_id, by_key = mappings(call, given, keys)
        versions = extras(call, "if_version", if_version, (by_id, by_key))
        if isinstance(lr, Mapping):
            lr = extras(call, "lr", lr, (by_id, by_key))
        if isinstance(create, Mapping):
            create = extras(call, "create", create, (by_id, by_key))
        else:
            create = check_flag("create", create)
        specs = prepare_updates(op, by_id, by_key, lr=lr, if_version=versions, create=create)
        return (yield from self._push(op, specs, idempotency_key, deadline))

    def delete_rows(
        self,
        keys: Mapping[str, ArrayLike],
        *,
        if_version: Mapping[str, int] | None,
        idempotency_key: str | None,
        timeout: float | None,
    ) -> Plan[UpdateResult]:
        """The plan of Client.delete_rows and delete_rows_many."""
        deadline = self.tries.deadline(timeout)
        _, by_key = mappings("delete_rows_many", None, keys)
        versions = extras("delete_rows_many", "if_version", if_version, (by_key,))
        specs = prepare_deletes(by_key, versions)
        return (yield from self._push(UpdateOp.DELETE_ROWS, specs, idempotency_key, deadline))

    def change(self, request: ChangeRequest, timeout: float | None) -> Plan[ChangeResult]:
        """The plan of Client.create_table, delete_table, publish, rollback and set_optimizer."""
        deadline = self.tries.deadline(timeout)
        send = Send(request.method, request.body, deadline, once=True)
        reply = decode_change((yield from self._send_change(send, request.what)))
        return ChangeResult(reply.version, reply.lsn)

    def upload(
        self,
        name: str,
        vectors: object,
        keys: object,
        dtype: object,
        *,
        resume: str | None,
        chunk_bytes: int | None,
        timeout: float | None,
        **options: Any,
    ) -> "Upload":
        """The upload of Client.create_table and publish; `options` are those of `upload_spec`."""
        # Rarely needed, so imported here.
        from gatherd._plans.uploads import Upload, upload_spec
        from gatherd._requests.uploads import rows_of

        spec = upload_spec(name, **options)
        rows = rows_of(vectors, keys, dtype)
        return Upload(
            self.tries, spec, rows, resume=resume, chunk_bytes=chunk_bytes, timeout=timeout
        )

    def uploads(self, timeout: float | None) -> Plan[list[UploadInfo]]:
        """The plan of Client.uploads."""
        from gatherd._plans.uploads import list_uploads

        return list_uploads(self.tries, timeout)

    def cancel_upload(self, upload: str, timeout: float | None) -> Plan[None]:
        """The plan of Client.cancel_upload."""
        from gatherd._plans.uploads import cancel_upload

        return cancel_upload(self.tries, upload, timeout)

    def snapshot(self, name: str, timeout: float | None) -> Plan[SnapshotResult]:
        """The plan of Client.snapshot."""
        deadline = self.tries.deadline(timeout)
        send = Send(SNAPSHOT.path, encode_snapshot(name), deadline, once=True)
        reply = decode_snapshot((yield from self._send_change(send, "the snapshot was taken")))
        return SnapshotResult(reply.path, reply.lsn)

    def ping(self, timeout: float | None) -> Plan[ServerInfo]:
        """The plan of Client.ping: the first request connects, the second is timed."""
        send = Send(GET_SERVER.path, encode_get_server(), self.tries.deadline(timeout))
        yield from self.tries.send(send)
        begun = time.monotonic()
        reply = decode_get_server((yield from self.tries.send(send)))
        seconds = time.monotonic() - begun
        return ServerInfo(reply.version, reply.commit, reply.ready, reply.updates, seconds)

    def snapshots(self, timeout: float | None) -> Plan[list[SnapshotInfo]]:
        """The plan of Client.snapshots."""
        send = Send(LIST_SNAPSHOTS.path, encode_list_snapshots(), self.tries.deadline(timeout))
        reply = decode_list_snapshots((yield from self.tries.send(send)))
        return [
            SnapshotInfo(one.name, one.path, one.lsn, _created(one), one.bytes, one.damaged)
            for one in reply.snapshots
        ]

    def delete_snapshot(self, name: str, timeout: float | None) -> Plan[None]:
        """The plan of Client.delete_snapshot."""
        deadline = self.tries.deadline(timeout)
        send = Send(DELETE_SNAPSHOT.path, encode_delete_snapshot(name), deadline, once=True)
        decode_delete_snapshot((yield from self._send_change(send, "the snapshot was deleted")))

    def _push(
        self,
        op: UpdateOp,
        specs: Sequence[UpdateSpec],
        key: str | None,
        deadline: Deadline,
        foreseen: ForeseenPush | None = None,
    ) -> Plan[UpdateResult]:
        """Send it until it is answered, each time with the same bytes and the same id."""
        request_id = self._ids.draw() if key is None else check_idempotency_key(key)
        send = _push_of(op, specs, request_id, deadline, foreseen)
        tried = Tried()
        while True:
            try:
                return decode_update((yield from self.tries.send(send, tried)), specs)
            except RequestIdStale as error:
                # Only this call knows the id, so if it was never sent, nothing was done under it:
                # the server forgot the session's earlier pushes, and the push can go into a new
                # session.
                if tried.was_sent or not isinstance(request_id, SessionSequence):
                    raise _told(error, tried.is_lost) from None
                request_id, tried.was_sent = self._ids.draw_anew(request_id), True
                send = _push_of(op, specs, request_id, deadline, foreseen)
            except LimitExceeded as error:
                error.message += "; a push isn't split by the client: send it as several"
                raise
            except GatherdError as error:
                raise _told(error, tried.is_lost or _is_lost(error)) from None

    def _send_change(self, send: Send, what: str) -> Plan[memoryview]:
        """Send it, and send it again only while the server can't have done it."""
        try:
            return (yield from self.tries.send(send, may_repeat=False))
        except GatherdError as error:
            raise _told(error, _is_lost(error), what) from None


def _created(info: table_pb2.SnapshotInfo) -> datetime | None:
    try:
        return None if info.damaged else datetime.fromtimestamp(info.created_seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise unreadable(f"a snapshot can't be of second {info.created_seconds}") from None


def _push_of(
    op: UpdateOp,
    specs: Sequence[UpdateSpec],
    request_id: RequestId,
    deadline: Deadline,
    foreseen: ForeseenPush | None,
) -> Send:
    if foreseen is None:
        body = encode_update(specs, request_id)
    else:
        body = foreseen.body(encode_request_id(request_id))
    return Send(op.method, body.head, deadline, body.rest, once=True)


def _is_lost(error: GatherdError) -> bool:
    """Whether the outcome of the request that failed with `error` is unknown."""
    return isinstance(error, DeadlineExceeded) or error.metadata.get(OUTCOME) == UNKNOWN


def _told(error: GatherdError, is_lost: bool, what: str = "the push was done") -> GatherdError:
    """`error`, with a note if it is unknown whether the server did what was asked."""
    if is_lost and isinstance(error, _UNDECIDED):
        error.message += f"; it isn't known whether {what}"
        error.metadata[OUTCOME] = UNKNOWN
    return error
