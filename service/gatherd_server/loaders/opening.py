"""From what a person types to rows: finds a source, unpacks it, and tells its format by content.

A SOURCE is a path or URI, and after a "#" the part of it: a tensor, array, dataset or column, or an
archive's member and then, after another "#", the part of that.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.format import NPY_MAGIC
from gatherd.store.gguf import GGUF_MAGIC
from gatherd_server.loaders.arrays import npy_source, npz_source, safetensors_source
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource, pick
from gatherd_server.loaders.columnar import ARROW_MAGIC, PARQUET_MAGIC, Columns, columnar_source
from gatherd_server.loaders.folders import folder_sources, index_source
from gatherd_server.loaders.gguf import gguf_source
from gatherd_server.loaders.hdf5 import HDF5_MAGIC, hdf5_source
from gatherd_server.loaders.keys_file import with_keys
from gatherd_server.loaders.limits import (
    PACKING_DEPTH_MAX,
    ZIP_ENTRIES_MAX,
    UnpackLimits,
)
from gatherd_server.loaders.streams import (
    Opened,
    Spool,
    is_uri,
    open_location,
    reading,
    unpack_gzip,
    unpack_member,
)
from gatherd_server.loaders.text import text_shape, text_source
from gatherd_server.loaders.torch_zip import LEGACY_MAGIC, torch_root, torch_source
from gatherd_server.loaders.word2vec_binary import word2vec_binary_source

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
# Longer than the magic alone, which can also be a text file's first token.
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_JSON_OBJECT = re.compile(rb"\s*\{\s*(\"|\}\s*$)")
KERAS_ENTRY = "model.weights.h5"
# What we know but don't read, and what to do with it.
_REFUSED = {
    b"\xfd7zXZ\x00": "is packed by xz; unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "is packed by zstd; unpack it first (zstd -d)",
    b"\xba\x16\x4f\x2f": "is a fastText model (.bin); import its vectors, the .vec file",
}


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How sources are read. `spool` writes a temporary file where one has to be."""

    spool: Spool
    key_column: str | None = None
    keys: str | None = None
    on_bad_row: OnBadRow = OnBadRow.ERROR
    limits: UnpackLimits = field(default_factory=UnpackLimits)
    closing: ExitStack = field(default_factory=ExitStack, init=False)


@contextmanager
def open_sources(sources: Sequence[str], options: OpenOptions) -> Iterator[RowSource]:
    """The rows of all `sources`, one after the other, as one, within a `with` block.

    BadFile when one is damaged or of no known format, InvalidArgument when what is asked of it
    doesn't fit it, or several don't fit each other.
    """
    with options.closing:
        yield _together(sources, options)


def _together(sources: Sequence[str], options: OpenOptions) -> RowSource:
    opened = [rows for source in sources for rows in _open(source, options)]
    source = opened[0] if len(opened) == 1 else _chain(opened)
    if options.key_column is not None and source.key_kind is None:
        raise InvalidArgument(f"{source.name} has no columns, so no key column either")
    if options.on_bad_row is OnBadRow.SKIP and source.key_kind is None:
        raise InvalidArgument(
            f"{source.name} has no keys of its own: leaving rows out (--on-bad-row skip) would "
            "change the ids of those after them"
        )
    if options.keys is not None:
        keys = open_location(options.keys, options.spool, options.limits, options.closing)
        stream = keys.stream
        if stream.peek(2) == GZIP_MAGIC:
            stream = unpack_gzip(stream, options.limits)
        source = with_keys(source, stream)
    return source


def _open(source: str, options: OpenOptions) -> list[RowSource]:
    location, part = _split(source)
    if not is_uri(location) and Path(location).is_dir():
        return folder_sources(location, part, _opener(options, 0))
    return [_opener(options, 0)(location, part)]


def _opener(options: OpenOptions, depth: int) -> Callable[[str, str | None], RowSource]:
    """Opens a location; `depth` counts the packings and indexes that led to it."""

    def open_(location: str, part: str | None) -> RowSource:
        opened = open_location(location, options.spool, options.limits, options.closing)
        return _recognise(opened, part, options, depth)

    return open_


def _split(source: str) -> tuple[str, str | None]:
    """Location and part of a source; a "#" in the name of a file that is there is just that."""
    if "#" not in source or (not is_uri(source) and Path(source).exists()):
        return source, None
    location, _, part = source.partition("#")
    return location, part or None


def _recognise(opened: Opened, part: str | None, options: OpenOptions, depth: int) -> RowSource:
    """The rows of a file, by what it begins with."""
    head = opened.stream.peek(64)
    _refuse(opened.name, head)
    if head.startswith(GZIP_MAGIC):
        _check_depth(opened, depth)
        stream = unpack_gzip(opened.stream, options.limits)
        unpacked = replace(opened, name=stream.name, stream=stream, path=None)
        return _recognise(unpacked, part, options, depth + 1)
    if head.startswith(ZIP_MAGICS):
        _check_depth(opened, depth)
        return _zip_source(opened, part, options, depth)
    if head.startswith(HDF5_MAGIC):
        return hdf5_source(opened.name, opened.as_file(), part, options.limits)
    if head.startswith((PARQUET_MAGIC, ARROW_MAGIC)):
        columns = Columns(part, options.key_column)
        path = opened.as_file()
        return columnar_source(opened.name, path, columns, options.on_bad_row, options.limits)
    if head.startswith(GGUF_MAGIC):
        return gguf_source(opened, part, options.key_column)
    if len(head) > 8 and head[8:9] == b"{" and head[4:8] == bytes(4):
        return safetensors_source(opened, part)
    if _JSON_OBJECT.match(head):
        _check_depth(opened, depth)
        return index_source(opened, part, _opener(options, depth + 1))
    if part is not None:
        raise InvalidArgument(f"{opened.name} has no parts, so no {part!r} to pick")
    return npy_source(opened) if head.startswith(NPY_MAGIC) else _vectors_source(opened, options)


def _refuse(name: str, head: bytes) -> None:
    """BadFile for what begins like something that we know and don't read."""
    if not head:
        raise BadFile(f"{name} is empty")
    if _BZIP2.match(head):
        raise BadFile(f"{name} is packed by bzip2; unpack it first (bunzip2)")
    for magic, problem in _REFUSED.items():
        if head.startswith(magic):
            raise BadFile(f"{name} {problem}")
    if LEGACY_MAGIC in head:
        raise BadFile(
            f"{name} is a torch file of before 1.6, all of it one pickle; load it with torch and "
            "save it again: torch.save(state_dict, …)"
        )
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise BadFile(
            f"{name} is a pickle, which is never run here; save the array itself: numpy.save, or "
            "gensim's save_word2vec_format"
        )


def _check_depth(opened: Opened, depth: int) -> None:
    if depth >= PACKING_DEPTH_MAX:
        raise BadFile(f"{opened.name} is packed more than {PACKING_DEPTH_MAX} times over")


def _vectors_source(opened: Opened, options: OpenOptions) -> RowSource:
    shape = text_shape(opened.stream)
    if shape is not None:
        return text_source(opened.stream, shape, options.on_bad_row)
    source = word2vec_binary_source(opened.stream)
    if source is None:
        raise BadFile(
            f"{opened.name} is of no format we know (by its content); docs/formats.md lists them"
        )
    return source


def _zip_source(opened: Opened, part: str | None, options: OpenOptions, depth: int) -> RowSource:
    """What a zip archive is: torch's, Keras', NumPy's, or something packed."""
    limits = options.limits
    path = opened.as_file()
    with reading(opened.name):
        archive = options.closing.enter_context(zipfile.ZipFile(path))
    # Not is_dir(), which takes a name of no letters for an index error.
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    names = [info.filename for info in infos]
    if len(names) > ZIP_ENTRIES_MAX or len(set(names)) != len(names):
        raise BadFile(
            f"{opened.name} has {len(names)} members, or one twice; {ZIP_ENTRIES_MAX} are read"
        )
    root = torch_root(names)
    if root is not None:
        return torch_source(opened, archive, root, part)
    if KERAS_ENTRY in names:
        stream = unpack_member(archive, archive.getinfo(KERAS_ENTRY), opened.name, limits)
        weights = replace(opened, stream=stream, path=None).as_file()
        return hdf5_source(opened.name, weights, part, limits, "Keras")
    if names and all(name.endswith(".npy") for name in names):
        return npz_source(opened, archive, part, limits)
    member, inner = part, None
    if part not in names:
        # The part of the only member, or "member#its part".
        first, _, rest = (part or "").partition("#")
        member, inner = (first, rest or None) if first in names else (None, part)
        member = None if len(names) == 1 else (member or part)
    shapes = {info.filename: f"{info.file_size} bytes" for info in infos}
    if len(names) == 1 and part is not None and part.partition("#")[0] == names[0]:
        inner = part.partition("#")[2] or None
    member = pick(opened.name, member, shapes, "member")
    name = f"{opened.name}#{member}"
    stream = unpack_member(archive, archive.getinfo(member), name, limits)
    return _recognise(
        replace(opened, name=name, stream=stream, path=None), inner, options, depth + 1
    )


def _chain(sources: list[RowSource]) -> RowSource:
    """Several sources as one: the rows of the first, then of the second, and so on."""
    first = sources[0]
    for other in sources[1:]:
        for what in ("dim", "dtype", "key_kind"):
            mine, its = getattr(first, what), getattr(other, what)
            if mine != its:
                mine, its = (getattr(value, "value", value) for value in (mine, its))
                raise InvalidArgument(
                    f"{first.name} and {other.name} don't make one table: {what} {mine} and {its}"
                )
    counts = [source.row_count for source in sources]
    totals = [source.total for source in sources]

    def read() -> Iterator[RowBatch]:
        before = 0
        for source in sources:
            done = 0
            for batch in source.read():
                done = batch.done
                yield replace(batch, done=before + done)
            before += source.total or done

    return replace(
        first,
        name=", ".join(source.name for source in sources[:3]) + (", …" if len(sources) > 3 else ""),
        row_count=None if None in counts else sum(count or 0 for count in counts),
        total=None if None in totals else sum(total or 0 for total in totals),
        read=read,
    )
