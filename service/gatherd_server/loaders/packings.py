"""Packed streams: gzip, bzip2, xz and zstd, recognised by their first bytes.

Unpacked bytes are passed on in pieces and never kept, so that the limits stop a bomb, not a lack of
memory. xz and zstd keep a window of the unpacked bytes; its size is bounded.
"""

import bz2
import gzip
import importlib
import lzma
import re
import sys
from collections.abc import Callable
from typing import Any

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders.limits import XZ_MEMORY_BYTES_MAX, UnpackLimits
from gatherd_server.loaders.streams import Bounded, ByteStream

_READ_BYTES = 256 << 10
# Longer than the magic alone if a text file's first token can look like it.
_GZIP = re.compile(rb"\x1f\x8b\x08")
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_XZ = re.compile(rb"\xfd7zXZ\x00")
# A frame, or a skippable one, with which pzstd begins.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")


def unpack(stream: ByteStream, limits: UnpackLimits) -> ByteStream | None:
    """The unpacked `stream`; None when it isn't packed in a known way."""
    head = stream.peek(16)
    if _GZIP.match(head):
        source: Any = _Source(stream)
        return _bounded(stream, gzip.GzipFile(fileobj=source, mode="rb"), ".gz", limits)
    for magic, suffix, new_decoder in _DECODERS:
        if magic.match(head):
            file = _Unpacked(stream, new_decoder(stream.name))
            return _bounded(stream, file, suffix, limits)
    return None


def _bounded(stream: ByteStream, file: Any, suffix: str, limits: UnpackLimits) -> ByteStream:
    bounded: Any = Bounded(stream.name, file, lambda: stream.position, limits)
    return ByteStream(stream.name.removesuffix(suffix), bounded, stream.total, stream.done)


class _Source:
    """A stream as a file for gzip."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def read(self, byte_count: int) -> bytes:
        return self._stream.read(byte_count)


class _Unpacked:
    """The unpacked bytes of a stream of one or more frames, as a file.

    A decoder is like bz2.BZ2Decompressor; each frame gets a new one.
    """

    def __init__(self, stream: ByteStream, new_decoder: Callable[[], Any]) -> None:
        self._stream = stream
        self._new_decoder = new_decoder
        self._decoder = new_decoder()

    def read(self, byte_count: int) -> bytes:
        while True:
            if self._decoder.eof:
                packed = self._next_frame()
                if not packed:
                    return b""
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input:
                packed = self._stream.read(_READ_BYTES)
                if not packed:
                    raise EOFError
            else:
                packed = b""
            try:
                data: bytes = self._decoder.decompress(packed, byte_count)
            except Exception as error:  # noqa: BLE001  # each decoder has errors of its own
                if "emory" in str(error):
                    raise BadFile(
                        f"{self._stream.name} takes more memory to unpack than "
                        f"{XZ_MEMORY_BYTES_MAX >> 20} MiB (xz) or a window of 128 MiB (zstd); "
                        "unpack it first, or pack it with a smaller one"
                    ) from None
                raise BadFile(
                    f"{self._stream.name} is damaged, or packed in a way we don't read: {error}"
                ) from None
            if data:
                return data

    def _next_frame(self) -> bytes:
        """The bytes after a frame; xz pads the last one with zeros."""
        packed: bytes = self._decoder.unused_data
        while True:
            if isinstance(self._decoder, lzma.LZMADecompressor):
                packed = packed.lstrip(b"\0")
            if packed:
                return packed
            packed = self._stream.read(_READ_BYTES)
            if not packed:
                return b""

    def close(self) -> None:
        self._decoder = None


def _new_bzip2(_: str) -> Callable[[], Any]:
    return bz2.BZ2Decompressor


def _new_xz(_: str) -> Callable[[], Any]:
    return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)


def _new_zstd(name: str) -> Callable[[], Any]:
    # By default a window is at most 128 MiB; frames with larger ones (zstd --long=28) are refused.
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        decoder: Callable[[], Any] = importlib.import_module(module).ZstdDecompressor
    except ImportError:
        raise InvalidArgument(
            f"{name} is packed by zstd, which needs backports.zstd: "
            "pip install 'gatherd[formats]', or unpack it first (zstd -d)"
        ) from None
    return decoder


_DECODERS: tuple[tuple[re.Pattern[bytes], str, Callable[[str], Callable[[], Any]]], ...] = (
    (_BZIP2, ".bz2", _new_bzip2),
    (_XZ, ".xz", _new_xz),
    (_ZSTD, ".zst", _new_zstd),
)
