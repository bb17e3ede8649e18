"""Uploads as plans: begin, chunk after chunk, commit.

Every step may be sent again, so a lost connection costs a chunk, and a server may restart within a
request's timeout. What ends an upload otherwise is an error that names it: then a later call goes
on with it, or it is cancelled.
"""

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Final

from gatherd._plans.effects import Computation, Deadline, Plan, Send, Sleep
from gatherd._plans.retry import Tries
from gatherd._requests.lookups import check_table, check_version
from gatherd._requests.names import Values
from gatherd._requests.tables import (
    OptimizerGiven,
    UploadInfo,
    UploadResult,
    check_count,
    check_flag,
    check_text,
)
from gatherd._requests.uploads import CHUNK_BYTES, Batch, Rows
from gatherd._wire import uploads as wire
from gatherd._wire.updates import Body
from gatherd._wire.uploads import UploadSpec
from gatherd.errors import (
    DeadlineExceeded,
    DiskFull,
    FailedPrecondition,
    GatherdError,
    InvalidArgument,
    RetryableError,
    UpdatesStopped,
)
from gatherd.store.given import as_given_array
from gatherd_proto.procedures import (
    BEGIN_UPLOAD,
    CANCEL_UPLOAD,
    COMMIT_UPLOAD,
    GET_UPLOAD,
    LIST_UPLOADS,
    PUT_CHUNK,
)

UPLOAD: Final = "upload"
"""Under this name an error's metadata has the upload that can go on."""
# A commit builds a key index and optimizer state, which takes longer than a request usually may.
COMMIT_SECONDS: Final = 3600.0
CANCEL_SECONDS: Final = 5.0
_ON_DUPLICATE: Final = ("error", "first", "last")
# After these an upload can go on, perhaps after a while.
_GOES_ON: Final = (RetryableError, DeadlineExceeded, DiskFull, UpdatesStopped)

OnRows = Callable[[int], object]
"""Told how many rows are at the server."""


def upload_spec(
    table: object,
    *,
    optimizer: OptimizerGiven | None = None,
    default_vector: Values | None = None,
    publishes: bool = False,
    if_version: int | None = None,
    allow_nonfinite: bool = False,
    on_duplicate: str = "error",
    frozen: bool = False,
) -> UploadSpec:
    """What an upload is to become. InvalidArgument for what it can't."""
    name, _ = check_table(table)
    if on_duplicate not in _ON_DUPLICATE:
        raise InvalidArgument(
            f"on_duplicate is {on_duplicate!r}; it can be {', '.join(_ON_DUPLICATE)}"
        )
    vector = None
    if default_vector is not None:
        array = as_given_array(default_vector, "default_vector")
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            raise InvalidArgument("default_vector takes numbers, of shape (dim,)")
        vector = tuple(map(float, array))
    version = check_version("if_version", if_version)
    return UploadSpec(
        name,
        optimizer,
        vector,
        publishes,
        version,
        check_flag("allow_nonfinite", allow_nonfinite),
        on_duplicate,
        check_flag("frozen", frozen),
    )


class Upload:
    """One upload: the plan that makes it, and the one that undoes it."""

    def __init__(
        self,
        tries: Tries,
        spec: UploadSpec,
        rows: Rows,
        *,
        resume: str | None,
        chunk_bytes: int | None,
        timeout: float | None,
        on_rows: OnRows | None = None,
    ) -> None:
        """`resume` is the name of an upload to go on with; `timeout` bounds each request."""
        self._tries = tries
        self._spec = spec
        self._rows = rows
        self._resumes = resume is not None
        self._upload = secrets.token_hex(16) if resume is None else check_text("resume", resume)
        self._chunk_bytes = CHUNK_BYTES
        if chunk_bytes is not None:
            self._chunk_bytes = max(1, check_count("chunk_bytes", chunk_bytes))
        self._timeout = timeout
        self._on_rows = on_rows or (lambda _count: None)
        self._deadline = tries.deadline(timeout)  # checks the timeout

    def run(self) -> Plan[UploadResult]:
        """The plan."""
        info, chunk_bytes_max = yield from self._begun()
        chunk_bytes, next_row = min(self._chunk_bytes, chunk_bytes_max), info.rows
        while True:
            try:
                yield from self._put_all(next_row, chunk_bytes)
                break
            except FailedPrecondition as error:
                # After a power cut the server may have fewer rows than it had.
                expected = error.metadata.get("expected", "")
                if not self._rows.can_repeat or not expected.isdigit() or int(expected) == next_row:
                    raise
                next_row = int(expected)
        return wire.decode_commit((yield from self._committed()))

    def _committed(self) -> Plan[memoryview]:
        """The reply to the commit, which may take long; a lost server is waited for as usual."""
        body = wire.encode_commit(self._upload)
        seconds = max(COMMIT_SECONDS, self._timeout or 0)
        lost: Deadline | None = None
        for attempt in count():
            try:
                reply: memoryview = yield Send(
                    COMMIT_UPLOAD.path, body, self._tries.deadline(seconds)
                )
                return reply
            except RetryableError as error:
                lost = lost or self._tries.deadline(self._timeout)
                pause = self._tries.pause(attempt, error, lost)
                if pause is None:
                    raise
            yield Sleep(pause)
        raise AssertionError

    def _begun(self) -> Plan[tuple[UploadInfo, int]]:
        if not self._resumes:
            body = wire.encode_begin(self._upload, self._spec, self._rows)
            return wire.decode_upload((yield from self._send(BEGIN_UPLOAD.path, body)))
        body = wire.encode_get(self._upload)
        info, most = wire.decode_upload((yield from self._send(GET_UPLOAD.path, body)))
        rows = self._rows
        given = (self._spec.table, rows.dim, rows.dtype.value, rows.key_kind, rows.row_count)
        begun = (info.table, info.dim, info.dtype, info.key_kind, info.announced)
        if given[:-1] != begun[:-1] or given[-1] not in (begun[-1], None):
            raise InvalidArgument(
                f"upload {self._upload} is of table {begun[0]!r}, dim {begun[1]}, {begun[2]}, "
                f"{begun[3] or 'no'} keys and {begun[4]} rows; this is of table {given[0]!r}, "
                f"dim {given[1]}, {given[2]}, {given[3] or 'no'} keys and {given[4]} rows"
            )
        return info, most

    def _put_all(self, next_row: int, chunk_bytes: int) -> Plan[None]:
        batches = self._rows.chunks(next_row, chunk_bytes)
        while True:
            made: tuple[Body, int] | None = yield Computation(
                partial(self._next, batches, next_row), chunk_bytes
            )
            if made is None:
                return
            body, row_count = made
            deadline = self._tries.deadline(self._timeout)
            send = Send(PUT_CHUNK.path, body.head, deadline, body.rest)
            found = wire.decode_put((yield from self._tries.send(send)))
            next_row = max(found, next_row + row_count)
            self._on_rows(next_row)

    def _next(self, batches: Iterator[Batch], offset: int) -> tuple[Body, int] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        return wire.encode_chunk(self._upload, offset, batch, self._rows.dtype), len(batch.rows)

    def ended_by(self, error: BaseException) -> bool:
        """Whether the upload is to be cancelled after `error`; otherwise `error` names it."""
        if not isinstance(error, _GOES_ON):
            return True
        error.metadata[UPLOAD] = self._upload
        error.message += f"; resume={self._upload!r} goes on with the upload"
        return False

    def cancel(self) -> Plan[None]:
        """The plan that deletes what was uploaded; an upload that there isn't is no error."""
        try:
            yield from self._send(
                CANCEL_UPLOAD.path, wire.encode_cancel(self._upload), CANCEL_SECONDS
            )
        except GatherdError:
            return  # it expires

    def _send(self, method: str, body: bytes, seconds: float | None = None) -> Plan[memoryview]:
        deadline = self._tries.deadline(self._timeout if seconds is None else seconds)
        return (yield from self._tries.send(Send(method, body, deadline)))


def list_uploads(tries: Tries, timeout: float | None) -> Plan[list[UploadInfo]]:
    """The plan of Client.uploads."""
    send = Send(LIST_UPLOADS.path, wire.encode_list(), tries.deadline(timeout))
    return wire.decode_list((yield from tries.send(send)))


def cancel_upload(tries: Tries, upload: str, timeout: float | None) -> Plan[None]:
    """The plan of Client.cancel_upload."""
    body = wire.encode_cancel(check_text("upload", upload))
    yield from tries.send(Send(CANCEL_UPLOAD.path, body, tries.deadline(timeout)))
