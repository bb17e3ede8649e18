"""Uploads, as the engine offers them: each operation is a future, made on threads of its own.

Chunks are written by this process, beside its lookups; the disk makes them wait, never the event
loop. A commit completes the files here too, and hands the writer nothing but the change.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Final, TypeVar

from gatherd.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatherdError,
    TableNotFound,
    Unavailable,
    VersionMismatch,
)
from gatherd_server.data_dir.uploads.committing import Commit
from gatherd_server.data_dir.uploads.spec import (
    Chunk,
    Committed,
    UploadSpec,
    UploadStatus,
    drawn_upload_id,
)
from gatherd_server.data_dir.uploads.store import Uploads
from gatherd_server.engine.tables import ServedTables
from gatherd_server.link.link import Link
from gatherd_server.types import Limits

T = TypeVar("T")

# A chunk takes the disk's time, and a copy's. More threads would only wait for the same disk.
CHUNK_THREADS: Final = 4
# A commit builds a key index on one core.
COMMIT_THREADS: Final = 2
# What a chunk's message has beside rows and keys, at most.
CHUNK_OVERHEAD_BYTES: Final = 4096
# How often a publish begins anew when another version became live meanwhile.
PUBLISHES_MAX: Final = 3


class UploadDesk:
    """Takes uploads into one data dir. Safe to use from many threads."""

    def __init__(
        self,
        tables: ServedTables,
        writer: Callable[[], Link],
        uploads: Uploads | None,
        limits: Limits,
    ) -> None:
        """`writer` gives the link, or raises without a data dir; then `uploads` is None."""
        self._limits = limits
        self._chunk_bytes_max = max(1, limits.request_bytes_max - CHUNK_OVERHEAD_BYTES)
        self._tables = tables
        self._writer = writer
        self._store = uploads

    @cached_property
    def _chunks(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(CHUNK_THREADS, "uploads")

    @cached_property
    def _commits(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(COMMIT_THREADS, "commits")

    @property
    def _uploads(self) -> Uploads:
        link = self._writer()
        if self._store is None:
            link.check()
            raise FailedPrecondition("this server takes no uploads")
        return self._store

    def table_of(self, upload: str) -> str:
        """The table that an upload is for. NotFound when there is no such upload."""
        return self._uploads.spec(upload).table

    def spec(self, upload: str) -> "Future[UploadSpec]":
        """What an upload is to become; NotFound when there is none."""
        uploads = self._uploads
        return self._run(self._chunks, lambda: uploads.spec(upload))

    def begin(self, upload: str, spec: UploadSpec) -> "Future[UploadStatus]":
        """Begin an upload, or go on with it; "" draws its name.

        The future raises what `Uploads.begin` does, AlreadyExists when a new table's name is taken,
        TableNotFound when there is none to publish to, FailedPrecondition when that isn't alike.
        """
        uploads = self._uploads

        def begin() -> UploadStatus:
            self._writer().check()
            spec.check()
            self._limits.check(
                "request_bytes_max",
                f"a row of {spec.row_bytes} bytes takes a request of",
                spec.row_bytes + CHUNK_OVERHEAD_BYTES,
            )
            self._check_name(spec)
            return self._told(uploads.begin(upload or drawn_upload_id(), spec))

        return self._run(self._chunks, begin)

    def append(self, chunk: Chunk) -> "Future[int]":
        """Write a chunk; the offset of the next one. The future raises as `Uploads.append`."""
        uploads = self._uploads
        return self._run(self._chunks, lambda: uploads.append(chunk))

    def status(self, upload: str) -> "Future[UploadStatus]":
        """An upload as it is now; NotFound when there is none."""
        uploads = self._uploads
        return self._run(self._chunks, lambda: self._told(uploads.status(upload)))

    def statuses(self) -> "Future[list[UploadStatus]]":
        """All uploads that aren't committed."""
        return self._run(self._chunks, self._uploads.statuses)

    def cancel(self, upload: str) -> "Future[None]":
        """Delete an upload. NotFound when there is none, Unavailable while it is in use."""
        uploads = self._uploads
        return self._run(self._chunks, lambda: uploads.cancel(upload))

    def commit(self, upload: str) -> "Future[Committed]":
        """Make an upload's rows a table, or a version; durable and visible when the future ends.

        It raises what `Commit.stage` and a change raise; the upload is as it was then.
        """
        uploads = self._uploads

        def commit() -> Committed:
            with uploads.committing(upload) as held:
                return self._committed(held)

        return self._run(self._commits, commit)

    def sweep(self) -> None:
        """Delete the uploads for which nothing came for too long."""
        if self._store is not None:
            self._store.sweep()

    def _committed(self, held: Commit) -> Committed:
        for left in reversed(range(PUBLISHES_MAX)):
            found = held.found(self._tables.lsn)
            if found is not None:
                return found
            link = self._writer()
            link.check()
            change = held.stage()
            try:
                return held.done(link.change(change).result())
            except GatherdError as error:
                held.failed(error)
                # The writer may have been restarted between the change and its answer.
                found = None if _is_lost(error) else held.found(self._tables.lsn)
                if found is not None:
                    return found
                if held.insists or not left or not isinstance(error, VersionMismatch):
                    raise
        raise AssertionError

    def _told(self, status: UploadStatus) -> UploadStatus:
        return replace(status, chunk_bytes_max=self._chunk_bytes_max)

    def _check_name(self, spec: UploadSpec) -> None:
        try:
            info = self._tables.info(spec.table)
        except TableNotFound:
            if spec.publishes:
                raise
            return
        about = {"table": spec.table}
        if not spec.publishes:
            raise AlreadyExists(f"there is a table {spec.table!r} already", about)
        if self._tables.is_file(spec.table):
            raise FailedPrecondition(
                f"table {spec.table!r} is a file that is served where it lies, so nothing of it "
                "can be changed",
                about,
            )
        kind = spec.key_kind.value if spec.key_kind else ""
        if not info.refused and (info.dim, info.key_kind) != (spec.dim, kind):
            raise FailedPrecondition(
                f"table {spec.table!r} has dim {info.dim} and {info.key_kind or 'no'} keys; the "
                f"upload has dim {spec.dim} and {kind or 'no'} keys",
                about,
            )

    def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> "Future[T]":
        try:
            return executor.submit(work)
        except RuntimeError:
            raise Unavailable("the server is stopping") from None


def _is_lost(error: GatherdError) -> bool:
    return error.metadata.get("outcome") == "unknown"
