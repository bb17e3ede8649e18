"""The uploads of a data dir: begun, filled, cancelled, and swept away when nothing comes.

Every worker writes chunks itself; the writer only makes the finished files a version. An upload's
folder is locked while it is used, so chunks of one upload may go to different workers. The lock
ends with the process that holds it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from gatherd.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatherdError,
    LimitExceeded,
    StorageError,
    Unavailable,
)
from gatherd.store.catalog import STAGING_NAME
from gatherd_server.data_dir.uploads.committing import Commit, read_done
from gatherd_server.data_dir.uploads.folder import SPEC_NAME, UploadFolder, read_spec, stored_bytes
from gatherd_server.data_dir.uploads.progress import PROGRESS_NAME
from gatherd_server.data_dir.uploads.spec import (
    Chunk,
    UploadLimits,
    UploadSpec,
    UploadStatus,
    check_upload_id,
)
from gatherd_server.storage.files import Files

UPLOADS_NAME: Final = "uploads"
"""The folder in staging. Sweeping staging leaves it."""
# A chunk waits so long for one before it, in another request.
LOCK_SECONDS: Final = 10.0
_LOCK_PAUSE_SECONDS: Final = 0.005
RETRY_AFTER_SECONDS: Final = 1.0
# Committed uploads are remembered, so that a commit sent again gets its answer; at most so many.
DONE_MAX: Final = 64


class Uploads:
    """The uploads of one data dir. Safe to use from many threads and processes."""

    def __init__(self, files: Files, data_dir: Path, limits: UploadLimits) -> None:
        self.limits = limits
        self._files = files
        self._data_dir = data_dir
        self._folder = data_dir / STAGING_NAME / UPLOADS_NAME

    def begin(self, upload: str, spec: UploadSpec) -> UploadStatus:
        """Begin an upload, durably; one that is there and is to become the same goes on.

        InvalidArgument for what no table can be; AlreadyExists when the name is that of another
        upload; FailedPrecondition when there are too many, LimitExceeded when they have too many
        bytes; DiskFull. Nothing is left of an upload that couldn't be begun.
        """
        spec.check()
        folder = self._folder / check_upload_id(upload)
        # An import makes staging too, and syncs no name.
        for above in (self._folder.parent, self._folder):
            self._files.make_dirs(above)
        with self._all_locked():
            self._sweep()
            if (folder / SPEC_NAME).exists():
                if read_spec(folder) != spec:
                    raise AlreadyExists(
                        f"upload {upload} was begun for something else", {"upload": upload}
                    )
                return self.status(upload)
            self._check_count()
            self._check_room((spec.row_count or 0) * spec.row_bytes)
            UploadFolder.create(self._files, folder, spec)
            return self.status(upload)

    def append(self, chunk: Chunk) -> int:
        """Write a chunk; the offset of the next. See `UploadFolder.append` for the errors.

        NotFound when there is no such upload, FailedPrecondition when it is being committed.
        """
        with self._locked(chunk.upload) as folder:
            _check_not_done(folder)
            with UploadFolder.open(self._files, folder) as opened:
                if opened.progress.is_committing:
                    raise FailedPrecondition(
                        f"upload {chunk.upload} is being committed, and takes no more rows; send "
                        "the commit again, or cancel the upload",
                        {"upload": chunk.upload},
                    )
                return opened.append(chunk, self._check_room)

    def spec(self, upload: str) -> UploadSpec:
        """What an upload is to become. NotFound when there is none."""
        return read_spec(self._folder / check_upload_id(upload))

    def status(self, upload: str) -> UploadStatus:
        """An upload as it is now. NotFound when there is none, or it was committed."""
        folder = self._folder / check_upload_id(upload)
        read_spec(folder)
        _check_not_done(folder)
        return self._status(folder)

    def statuses(self) -> list[UploadStatus]:
        """All uploads that aren't committed, by name."""
        found = []
        for folder in self._folders():
            with suppress(GatherdError):  # it was cancelled just now, or is damaged
                found.append(self.status(folder.name))
        return found

    def cancel(self, upload: str) -> None:
        """Delete an upload. NotFound when there is none; FailedPrecondition after its commit."""
        with self._locked(upload) as folder:
            _check_not_done(folder)
            self._remove(folder)

    @contextmanager
    def committing(self, upload: str) -> Iterator[Commit]:
        """Hold an upload while it is made a version. NotFound when there is none."""
        with self._locked(upload) as folder:
            yield Commit(self._files, self._data_dir, folder)

    def sweep(self) -> None:
        """Delete the uploads for which nothing came for too long, and what a killed begin left."""
        if self._folder.is_dir():
            with self._all_locked():
                self._sweep()

    # ------------------------------------------------------------------ helpers

    def _status(self, folder: Path) -> UploadStatus:
        with UploadFolder.open(self._files, folder) as opened:
            now, spec = opened.progress.now, opened.spec
            return UploadStatus(
                folder.name,
                spec,
                now.rows,
                now.rows * spec.row_bytes + now.key_bytes,
                int(_touched(folder) + self.limits.seconds),
                opened.progress.is_committing,
            )

    def _sweep(self) -> None:
        done = []
        for folder in self._folders():
            is_whole = (folder / SPEC_NAME).exists()
            is_expired = is_whole and _touched(folder) + self.limits.seconds < time.time()
            if not is_whole or is_expired:
                with self._files.shared_folder(folder, exclusive=True) as is_free:
                    if is_free:
                        self._remove(folder)
            elif read_done(folder) is not None:
                done.append(folder)
        done.sort(key=_touched)
        for folder in done[: max(0, len(done) - DONE_MAX)]:
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        staged = self._data_dir / STAGING_NAME / folder.name
        if staged.exists():
            self._files.remove_tree(staged)
        # Without its upload.json it is no upload any more, if the rest is cut short.
        self._files.unlink(folder / SPEC_NAME)
        self._files.remove_tree(folder)

    def _folders(self) -> list[Path]:
        return sorted(self._folder.iterdir()) if self._folder.is_dir() else []

    def _check_count(self) -> None:
        count = sum(read_done(folder) is None for folder in self._folders())
        if count >= self.limits.count_max:
            raise FailedPrecondition(
                f"the server has {count} uploads under way, and keeps at most "
                f"{self.limits.count_max} (uploads_max); commit or cancel one of them",
                {"limit": "uploads_max", "max": str(self.limits.count_max)},
            )

    def _check_room(self, more_bytes: int) -> None:
        total = more_bytes
        for folder in self._folders():
            with suppress(OSError):
                total += stored_bytes(folder)
        if total > self.limits.bytes_max:
            raise LimitExceeded(
                f"the uploads would have {total} bytes; the server keeps at most "
                f"{self.limits.bytes_max} (uploads_bytes_max)",
                {
                    "limit": "uploads_bytes_max",
                    "value": str(total),
                    "max": str(self.limits.bytes_max),
                },
            )

    @contextmanager
    def _all_locked(self) -> Iterator[None]:
        """Hold the folder of all uploads: no other process begins one, or sweeps."""
        with self._files.shared_folder(self._folder, exclusive=True, waits=True):
            yield

    @contextmanager
    def _locked(self, upload: str) -> Iterator[Path]:
        """Hold an upload's folder alone. NotFound when there is none, Unavailable while it is used.

        Waits for LOCK_SECONDS at most.
        """
        folder = self._folder / check_upload_id(upload)
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            read_spec(folder)
            try:
                with self._files.shared_folder(folder, exclusive=True) as is_held:
                    if is_held:
                        read_spec(folder)  # it may have been cancelled meanwhile
                        yield folder
                        return
            except StorageError:
                if not folder.exists():
                    read_spec(folder)
                raise
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"upload {upload} is in use by another request, perhaps its commit",
                    {"upload": upload},
                    RETRY_AFTER_SECONDS,
                )
            time.sleep(_LOCK_PAUSE_SECONDS)


def _touched(folder: Path) -> float:
    """When a chunk came last, in Unix time."""
    try:
        return (folder / PROGRESS_NAME).stat().st_mtime
    except OSError:
        return folder.stat().st_mtime


def _check_not_done(folder: Path) -> None:
    done = read_done(folder)
    if done is not None:
        raise FailedPrecondition(
            f"upload {folder.name} was committed: it is version {done.version} of table "
            f"{read_spec(folder).table!r}",
            {"upload": folder.name},
        )
