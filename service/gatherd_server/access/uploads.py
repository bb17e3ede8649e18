"""Uploads as one caller may use them: with scope admin, for the tables that its token is for."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

from gatherd_server.data_dir.uploads.spec import Chunk, Committed, UploadSpec, UploadStatus
from gatherd_server.engine.uploads import UploadDesk


class GuardedUploads:
    """An upload desk restricted to one caller's permissions; else as the desk."""

    def __init__(
        self,
        desk: UploadDesk,
        check: Callable[[str], None],
        sees: Callable[[str], bool],
        told: Callable[[Callable[[], "Future[Any]"]], "Future[Any]"],
    ) -> None:
        """`check` raises PermissionDenied unless the caller may change a table.

        `sees` is whether it may know of one. `told` gives a future whose errors name none of the
        others.
        """
        self._desk = desk
        self._check = check
        self._sees = sees
        self._told = told

    def spec(self, upload: str) -> "Future[UploadSpec]":
        """As UploadDesk's."""
        self._check(self._desk.table_of(upload))
        return self._desk.spec(upload)

    def begin(self, upload: str, spec: UploadSpec) -> "Future[UploadStatus]":
        """As UploadDesk's."""
        self._check(spec.table)
        return self._told(lambda: self._desk.begin(upload, spec))

    def append(self, chunk: Chunk) -> "Future[int]":
        """As UploadDesk's."""
        self._check(self._desk.table_of(chunk.upload))
        return self._desk.append(chunk)

    def status(self, upload: str) -> "Future[UploadStatus]":
        """As UploadDesk's."""
        self._check(self._desk.table_of(upload))
        return self._desk.status(upload)

    def statuses(self) -> "Future[list[UploadStatus]]":
        """As UploadDesk's, but only of the caller's tables."""
        listed: Future[list[UploadStatus]] = Future()

        def filter_done(done: "Future[list[UploadStatus]]") -> None:
            error = done.exception()
            if error is not None:
                listed.set_exception(error)
                return
            listed.set_result([one for one in done.result() if self._sees(one.spec.table)])

        self._desk.statuses().add_done_callback(filter_done)
        return listed

    def commit(self, upload: str) -> "Future[Committed]":
        """As UploadDesk's."""
        self._check(self._desk.table_of(upload))
        return self._told(lambda: self._desk.commit(upload))

    def cancel(self, upload: str) -> "Future[None]":
        """As UploadDesk's."""
        self._check(self._desk.table_of(upload))
        return self._desk.cancel(upload)


AnyUploads: TypeAlias = UploadDesk | GuardedUploads
