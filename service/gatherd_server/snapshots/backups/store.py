"""A place that backups are copied to: a folder, or anything that fsspec has a package for.

Both read and write files in pieces, so a table may have any size. An interrupted file is tried
again, a few times. A folder is synced before a backup in it counts. An object store's answer is
taken to mean that the file is durable.

    ROOT/NAME/upload.json       when the copying of backup NAME began
    ROOT/NAME/…                 the snapshot's files by their paths
    ROOT/NAME/snapshot.json     written last, deleted first
"""

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from gatherd.errors import BadFile, GatherdError, InvalidArgument, StorageError
from gatherd_server.snapshots.naming import is_name
from gatherd_server.snapshots.snapshot import SNAPSHOT_NAME
from gatherd_server.storage.files import Files

logger = logging.getLogger("gatherd.writer")

FILE_PIECE_BYTES: Final = 4 << 20
UPLOAD_NAME: Final = "upload.json"
# snapshot.json has ten bytes for each 4 MiB.
DOCUMENT_BYTES_MAX: Final = 256 << 20
# The pauses before the second and the later tries of a file.
PAUSES_SECONDS: Final = (1.0, 5.0)
# S3 takes a file as at most 10,000 parts; parts are held in memory, so they are kept small.
_PARTS_MAX: Final = 9_000
_PART_BYTES_MIN: Final = 8 << 20
FILE_SCHEME: Final = "file://"

Pieces = Callable[[], Iterator[bytes]]
"""Begins the file anew at each call."""


class Store(Protocol):
    """A place for backups. Every method raises StorageError when the place fails."""

    @property
    def shown(self) -> str:
        """Its URL, without secrets."""

    def names(self) -> list[str]:
        """The names in use, sorted; not all of them need be backups."""

    def put(self, path: str, pieces: Pieces, byte_count: int) -> None:
        """Make the file `path`, or replace it; its length is checked afterwards."""

    def seal(self, name: str, document: bytes) -> None:
        """Make the files under `name` a backup, with `document` as its snapshot.json. Durable."""

    def read(self, path: str) -> Iterator[bytes]:
        """The file's bytes in pieces. FileNotFoundError when it doesn't exist."""

    def remove(self, name: str) -> None:
        """Delete everything under `name`, its snapshot.json first."""


def open_store(url: str, files: Files | None = None) -> Store:
    """The place that `url` names: a path, `file://`, or any scheme that fsspec has a package for.

    InvalidArgument when a package is missing.
    """
    check_location(url)
    if is_remote(url):
        return RemoteStore(url)
    return FolderStore(Path(url.removeprefix(FILE_SCHEME)), files or Files())


def is_remote(url: str) -> bool:
    """Whether `url` needs fsspec; if not, it is a folder."""
    return "://" in url and not url.startswith(FILE_SCHEME)


def join_url(root: str, name: str) -> str:
    """The name that messages give to `name` below `root`."""
    return f"{root}/{name}" if is_remote(root) else str(Path(root) / name)


def check_location(url: str) -> None:
    """InvalidArgument when no store can be at `url`, as far as this machine can tell."""
    if not url:
        raise InvalidArgument("a place for backups is a folder or a URL; this one is empty")
    if "://" not in url:
        return
    if not url.partition("://")[2].strip("/"):
        raise InvalidArgument(f"{url} names no place: it ends with its scheme")
    if is_remote(url) and importlib.util.find_spec("fsspec") is None:
        raise InvalidArgument(f"{url} needs fsspec: pip install 'gatherd[remote]'")


def read_document(store: Store, path: str) -> bytes:
    """The whole of a small file. FileNotFoundError if missing, BadFile when it isn't small."""
    parts: list[bytes] = []
    byte_count = 0
    for piece in store.read(path):
        byte_count += len(piece)
        if byte_count > DOCUMENT_BYTES_MAX:
            raise BadFile(f"{store.shown}/{path} has more than {DOCUMENT_BYTES_MAX} bytes")
        parts.append(piece)
    return b"".join(parts)


class FolderStore:
    """A folder, better on another disk."""

    def __init__(self, root: Path, files: Files) -> None:
        """Nothing is made before the first `put`."""
        self.root = root
        self._files = files

    @property
    def shown(self) -> str:
        """See Store."""
        return str(self.root)

    def names(self) -> list[str]:
        """See Store. Names that end in `.partial` are no backups."""
        with _told(self.shown):
            if not self.root.is_dir():
                return []
            return sorted(
                path.name for path in self.root.iterdir() if is_name(path.name) and path.is_dir()
            )

    def put(self, path: str, pieces: Pieces, byte_count: int) -> None:
        """See Store."""
        target = self.root / path
        self._files.make_dirs(target.parent)
        with _told(str(target)):
            target.unlink(missing_ok=True)
            with open(target, "xb", buffering=0) as file:
                self._files.allocate(file.fileno(), byte_count, target)
                position = 0
                for piece in pieces():
                    position = self._files.write_at(
                        file.fileno(), memoryview(piece), position, target
                    )
                self._files.sync(file.fileno(), target)
        if position != byte_count:
            raise StorageError(f"{target} took {position} bytes instead of {byte_count}")

    def seal(self, name: str, document: bytes) -> None:
        """See Store."""
        folder = self.root / name
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                self._files.sync_dir(path)
        self._files.sync_dir(folder)
        self._files.replace(folder / SNAPSHOT_NAME, document)

    def read(self, path: str) -> Iterator[bytes]:
        """See Store."""
        where = str(self.root / path)
        with _told(where, FileNotFoundError), open(where, "rb", buffering=0) as file:
            while True:
                with _told(where):
                    piece = file.read(FILE_PIECE_BYTES)
                if not piece:
                    return
                yield piece

    def remove(self, name: str) -> None:
        """See Store."""
        folder = self.root / name
        self._files.unlink(folder / SNAPSHOT_NAME)
        self._files.sync_dir(folder)
        self._files.remove_tree(folder)


class RemoteStore:
    """A place that fsspec reaches. Its packages have their own settings, in the environment."""

    def __init__(self, url: str) -> None:
        """Opens no connection. InvalidArgument when the scheme's package is missing."""
        import fsspec

        self._shown = shown_url(url)
        try:
            # A cached listing would hide what others changed.
            file_system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InvalidArgument(
                f"{self._shown}: fsspec can't open it here: {error} "
                "(pip install 'gatherd[remote]' and the package for the scheme)"
            ) from None
        except Exception as error:  # noqa: BLE001  # each scheme's package has errors of its own
            raise StorageError(f"{self._shown}: {type(error).__name__}: {error}") from None
        self._file_system = file_system
        self._root = str(root).rstrip("/")

    @property
    def shown(self) -> str:
        """See Store."""
        return self._shown

    def names(self) -> list[str]:
        """See Store."""
        with _told(self._shown):
            self._file_system.invalidate_cache()
            try:
                found = self._file_system.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found}
        return sorted(name for name in names if is_name(name))

    def put(self, path: str, pieces: Pieces, byte_count: int) -> None:
        """See Store."""
        for pause in (*PAUSES_SECONDS, None):
            try:
                self._put(path, pieces, byte_count)
                return
            except BadFile:
                raise  # the file itself is damaged, and stays so
            except StorageError as error:
                if pause is None:
                    raise
                logger.warning("%s; another try in %g s", error, pause)
                time.sleep(pause)

    def _put(self, path: str, pieces: Pieces, byte_count: int) -> None:
        target = f"{self._root}/{path}"
        part_bytes = max(_PART_BYTES_MIN, -(-byte_count // _PARTS_MAX))
        with _told(f"{self._shown}/{path}"):
            self._file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            with self._file_system.open(target, "wb", block_size=part_bytes) as file:
                for piece in pieces():
                    file.write(piece)
            self._file_system.invalidate_cache()
            found = self._file_system.info(target)["size"]
        if found is not None and found != byte_count:
            raise StorageError(
                f"{self._shown}/{path} has {found} bytes after {byte_count} were written"
            )

    def seal(self, name: str, document: bytes) -> None:
        """See Store."""
        self.put(f"{name}/{SNAPSHOT_NAME}", lambda: iter((document,)), len(document))

    def read(self, path: str) -> Iterator[bytes]:
        """See Store. An interrupted read continues where it was, a few times."""
        position, pauses = 0, list(PAUSES_SECONDS)
        while True:
            try:
                for piece in self._read_from(path, position):
                    position += len(piece)
                    pauses = list(PAUSES_SECONDS)
                    yield piece
                return
            except StorageError as error:
                if not pauses:
                    raise
                logger.warning("%s; another try in %g s", error, pauses[0])
                time.sleep(pauses.pop(0))

    def _read_from(self, path: str, position: int) -> Iterator[bytes]:
        with _told(f"{self._shown}/{path}", FileNotFoundError):
            file = self._file_system.open(f"{self._root}/{path}", "rb", block_size=FILE_PIECE_BYTES)
        try:
            with _told(f"{self._shown}/{path}"):
                file.seek(position)
            while True:
                with _told(f"{self._shown}/{path}"):
                    piece: bytes = file.read(FILE_PIECE_BYTES)
                if not piece:
                    return
                yield piece
        finally:
            file.close()

    def remove(self, name: str) -> None:
        """See Store."""
        folder = f"{self._root}/{name}"
        with _told(f"{self._shown}/{name}"):
            with suppress(FileNotFoundError):
                self._file_system.rm_file(f"{folder}/{SNAPSHOT_NAME}")
            with suppress(FileNotFoundError):
                self._file_system.rm(folder, recursive=True)


def shown_url(url: str) -> str:
    """A URL as messages may show it: without user name and password."""
    scheme, separator, rest = url.rstrip("/").partition("://")
    authority, slash, path = rest.partition("/")
    if not separator or "@" not in authority:
        return url.rstrip("/")
    return f"{scheme}://…@{authority.rpartition('@')[2]}{slash}{path}"


@contextmanager
def _told(where: str, but: type[Exception] = GatherdError) -> Iterator[None]:
    """Turn what a file system raises into StorageError, except for `but`."""
    try:
        yield
    except (GatherdError, but):
        raise
    except Exception as error:  # each scheme's package has errors of its own
        raise StorageError(f"{where}: {type(error).__name__}: {error}") from error
