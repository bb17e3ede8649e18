"""A source's bytes in order: streams with lookahead and limits; members of a .zip."""

import gzip
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gatherd.errors import BadFile, GatherdError
from gatherd_server.loaders.limits import BATCH_BYTES, RATIO_FREE_BYTES, UnpackLimits

Spool = Callable[[str, Iterable[bytes]], Path]
"""Writes a stream to a temporary file of the data dir."""


class ByteStream:
    """A sequence of bytes, with lookahead. BadFile when they can't be read.

    `done` counts the bytes read of the outermost file: of the .gz, not of its contents; `total` is
    that file's size, or None when unknown.
    """

    def __init__(
        self, name: str, file: IO[bytes], total: int | None, done: Callable[[], int] | None = None
    ) -> None:
        self.name = name
        self.total = total
        self.position = 0
        self._file = file
        self._done = done
        self._ahead = b""

    def done(self) -> int:
        """The number of bytes read of the outermost file."""
        return self._done() if self._done is not None else self.position + len(self._ahead)

    def peek(self, byte_count: int) -> bytes:
        """The next `byte_count` bytes, without moving; fewer only at the stream's end."""
        while len(self._ahead) < byte_count:
            more = self._raw(byte_count - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead[:byte_count]

    def read(self, byte_count: int) -> bytes:
        """The next `byte_count` bytes; fewer only at the stream's end."""
        parts = [self._ahead[:byte_count]]
        self._ahead = self._ahead[byte_count:]
        missing = byte_count - len(parts[0])
        while missing:
            part = self._raw(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        self.position += byte_count - missing
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def skip(self, byte_count: int) -> None:
        """Skip `byte_count` bytes; BadFile when there are fewer."""
        while byte_count:
            part = self.read(min(byte_count, BATCH_BYTES))
            if not part:
                raise BadFile(f"{self.name} is truncated: it ends at byte {self.position}")
            byte_count -= len(part)

    def chunks(self) -> Iterator[bytes]:
        """The whole rest, in pieces."""
        while part := self.read(BATCH_BYTES):
            yield part

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _raw(self, byte_count: int) -> bytes:
        with reading(self.name):
            return self._file.read(min(byte_count, BATCH_BYTES))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors of a decoder or file system into BadFile, naming `name`."""
    try:
        yield
    except GatherdError:
        raise
    except EOFError:
        raise BadFile(f"{name} is truncated: its compressed data ends too early") from None
    except RuntimeError as error:
        # zipfile raises it for an encrypted entry.
        raise BadFile(f"{name} can't be read: {error}") from None
    except (
        zlib.error,
        gzip.BadGzipFile,
        zipfile.BadZipFile,
        NotImplementedError,
        UnicodeError,  # a zip member's name
    ) as error:
        raise BadFile(f"{name} is damaged or packed in a way we don't read: {error}") from None
    except OSError as error:
        raise BadFile(f"{name} can't be read: {error.strerror or error}") from None


def read_at(fd: int, byte_count: int, offset: int, name: str) -> bytes:
    """At most `byte_count` bytes of the file `fd`, from `offset` on; BadFile when reading fails."""
    with reading(name):
        return os.pread(fd, byte_count, offset)


class Bounded:
    """A file of unpacked bytes that enforces the limits."""

    def __init__(
        self, name: str, file: IO[bytes], packed_bytes: Callable[[], int], limits: UnpackLimits
    ) -> None:
        self._name = name
        self._file = file
        self._packed_bytes = packed_bytes
        self._limits = limits
        self._byte_count = 0

    def read(self, byte_count: int) -> bytes:
        """At most `byte_count` bytes; BadFile when the total exceeds the limits."""
        data = self._file.read(byte_count)
        self._byte_count += len(data)
        if self._byte_count > self._limits.bytes_max:
            raise BadFile(
                f"{self._name} unpacks to more than {self._limits.bytes_max} bytes "
                "(raise --unpacked-bytes-max if that is meant)"
            )
        if self._byte_count > max(RATIO_FREE_BYTES, self._packed_bytes() * self._limits.ratio_max):
            raise BadFile(
                f"{self._name} unpacks to more than {self._limits.ratio_max} times its size "
                "(raise --unpacked-ratio-max if that is meant)"
            )
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def unpack_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, limits: UnpackLimits
) -> ByteStream:
    """The contents of the zip member `info`; its checksum is verified at its end."""
    with reading(name):
        file: Any = archive.open(info)
    packed = max(1, info.compress_size)
    bounded: Any = Bounded(name, file, lambda: packed, limits)
    return ByteStream(name, bounded, info.file_size)


@dataclass(slots=True)
class Opened:
    """A source of which nothing is read yet: read it as a stream, or as a local file."""

    name: str
    stream: ByteStream
    path: Path | None
    spool: Spool
    limits: UnpackLimits
    closing: ExitStack

    def as_file(self) -> Path:
        """A local file with these bytes: the source itself, or a copy in the data dir's staging."""
        if self.path is None:
            self.path = self.spool(Path(self.name).name or "source", self._bounded_chunks())
        return self.path

    def _bounded_chunks(self) -> Iterator[bytes]:
        kept = 0
        for chunk in self.stream.chunks():
            kept += len(chunk)
            if kept > self.limits.bytes_max:
                raise BadFile(
                    f"{self.name} is longer than {self.limits.bytes_max} bytes "
                    "(raise --unpacked-bytes-max if that is meant)"
                )
            yield chunk
