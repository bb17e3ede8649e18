"""Opens a user's source: finds it, unpacks it, and recognises its format by its content.

A SOURCE is a path or URI, then after a "#" a part of it: a tensor, array, dataset or column, or an
archive's member and then, after another "#", a part of that.
"""

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.format import NPY_MAGIC, open_readonly
from gatherd.store.gguf import GGUF_MAGIC
from gatherd.store.parts import pick
from gatherd_server.loaders.arrays import npy_source, npz_source, safetensors_source
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource, limited
from gatherd_server.loaders.columnar import ARROW_MAGIC, PARQUET_MAGIC, Columns, columnar_source
from gatherd_server.loaders.fasttext import FASTTEXT_MAGIC, fasttext_source
from gatherd_server.loaders.folders import folder_sources, index_source
from gatherd_server.loaders.gensim_files import PICKLE_MAGICS, pickle_source
from gatherd_server.loaders.gguf import gguf_source
from gatherd_server.loaders.hdf5 import HDF5_MAGIC, hdf5_source
from gatherd_server.loaders.keys_file import with_keys
from gatherd_server.loaders.limits import (
    ARCHIVE_ENTRIES_MAX,
    PACKING_DEPTH_MAX,
    UnpackLimits,
)
from gatherd_server.loaders.locations import is_uri, open_location
from gatherd_server.loaders.packings import unpack
from gatherd_server.loaders.records import ColumnOptions
from gatherd_server.loaders.streams import (
    ByteStream,
    Opened,
    Spool,
    reading,
    unpack_member,
)
from gatherd_server.loaders.tar import BLOCK_BYTES as TAR_BLOCK_BYTES
from gatherd_server.loaders.tar import is_tar, member_stream, tar_members
from gatherd_server.loaders.text_formats import TextOptions, source_of_text
from gatherd_server.loaders.text_shape import FirstField, first_lines
from gatherd_server.loaders.torch_zip import LEGACY_MAGIC, torch_root, torch_source

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_JSON_OBJECT = re.compile(rb"\s*\{\s*(\"|\}\s*$)")
KERAS_ENTRY = "model.weights.h5"
_COLUMN_FORMATS = {"CSV", "TSV", "JSON Lines", "Parquet", "Arrow"}
_KEY_COLUMN_FORMATS = _COLUMN_FORMATS | {"GGUF"}
_TEXT_FORMATS = {"CSV", "TSV", "GloVe text", "word2vec text", "text of numbers"}
# Formats that we recognise but don't read, and what to do with them.
_REFUSED = {
    b"\x04\x22\x4d\x18": "is packed by lz4; unpack it first (lz4 -d)",
    b"\x1f\x9d": "is packed by compress; unpack it first (uncompress)",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first (7z x)",
    b"Rar!\x1a\x07": "is a rar archive; unpack it first (unrar x)",
}


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How sources are read. `spool` writes a temporary file when one is needed."""

    spool: Spool
    key_column: str | None = None
    keys: str | None = None
    on_bad_row: OnBadRow = OnBadRow.ERROR
    limits: UnpackLimits = field(default_factory=UnpackLimits)
    vector_columns: str | None = None
    first_field: FirstField | None = None
    words: str | None = None
    limit: int | None = None
    closing: ExitStack = field(default_factory=ExitStack, init=False)

    @property
    def own_key_column(self) -> str | None:
        """The key column of the source itself; with `keys` the option names that file's."""
        return self.key_column if self.keys is None else None


@dataclass(frozen=True, slots=True)
class _Way:
    """The way to a file: its location, the packings, and the file that names it, if one does."""

    location: str
    named_by: str | None = None
    depth: int = 0

    def unpacked(self) -> "_Way":
        return replace(self, depth=self.depth + 1)


@contextmanager
def open_sources(sources: Sequence[str], options: OpenOptions) -> Iterator[RowSource]:
    """The rows of all `sources`, one after the other, as one source, within a `with` block.

    BadFile when one is damaged or of no known format, InvalidArgument when its part or the options
    don't fit it, or several don't fit each other.
    """
    with options.closing:
        yield _together(sources, options)


def _together(sources: Sequence[str], options: OpenOptions) -> RowSource:
    _check_standard_input([*sources, options.keys, options.words])
    opened = [rows for source in sources for rows in _open(source, options)]
    _check_used(opened, options)
    source = opened[0] if len(opened) == 1 else _chain(opened)
    if options.limit is not None:
        source = limited(source, options.limit)
    if options.keys is None:
        if options.on_bad_row is OnBadRow.SKIP and source.key_kind is None:
            raise InvalidArgument(
                f"{source.name} has no keys of its own: leaving rows out (--on-bad-row skip) would "
                "change the ids of those after them"
            )
        return source
    return with_keys(
        source,
        _stream_of(options.keys, options),
        options.key_column,
        options.on_bad_row,
        may_have_more=options.limit is not None,
    )


def _check_used(sources: list[RowSource], options: OpenOptions) -> None:
    """InvalidArgument for an option that no source's format uses."""
    formats = {source.format for source in sources}
    for option, value, its_formats in (
        ("--key-column", options.own_key_column, _KEY_COLUMN_FORMATS),
        ("--vector-columns", options.vector_columns, _COLUMN_FORMATS),
        ("--first-field", options.first_field, _TEXT_FORMATS),
        ("--words", options.words, {"fastText"}),
    ):
        if value is not None and not formats & its_formats:
            raise InvalidArgument(
                f"{sources[0].name} is {sources[0].format}, so leave {option} out: it is for "
                + ", ".join(sorted(its_formats))
            )


def _check_standard_input(locations: Sequence[str | None]) -> None:
    """InvalidArgument when more than one location is standard input."""
    if sum(location is not None and _split(location)[0] == "-" for location in locations) > 1:
        raise InvalidArgument("standard input (-) can be read only once")


def _stream_of(location: str, options: OpenOptions) -> ByteStream:
    """The unpacked stream of a file that accompanies a source."""
    opened = open_location(location, options.spool, options.limits, options.closing)
    stream = opened.stream
    for _ in range(PACKING_DEPTH_MAX):
        stream = unpack(stream, options.limits) or stream
    return stream


def _open(source: str, options: OpenOptions) -> list[RowSource]:
    location, part = _split(source)
    if not is_uri(location) and Path(location).is_dir():
        return folder_sources(location, part, _opener(options))
    return [_opener(options)(location, part)]


def _opener(
    options: OpenOptions, named_by: str | None = None
) -> Callable[[str, str | None], RowSource]:
    """A function that opens a location; `named_by` is the file that names it, None for the user."""

    def open_(location: str, part: str | None) -> RowSource:
        if named_by is not None and not is_uri(location) and not Path(location).exists():
            raise BadFile(f"{named_by} names {location}, which isn't there")
        opened = open_location(location, options.spool, options.limits, options.closing)
        return _recognise(opened, part, options, _Way(location, named_by))

    return open_


def _split(source: str) -> tuple[str, str | None]:
    """Location and part of a source; a "#" in an existing file's name belongs to the name."""
    if "#" not in source or (not is_uri(source) and Path(source).exists()):
        return source, None
    location, _, part = source.partition("#")
    return location, part or None


def _recognise(opened: Opened, part: str | None, options: OpenOptions, way: _Way) -> RowSource:
    """The rows of a file, recognised by its first bytes."""
    head = opened.stream.peek(64)
    _refuse(opened.name, head)
    stream = unpack(opened.stream, options.limits)
    if stream is not None:
        _check_depth(opened, way)
        unpacked = replace(opened, name=stream.name, stream=stream, path=None)
        return _recognise(unpacked, part, options, way.unpacked())
    if head.startswith(ZIP_MAGICS):
        _check_depth(opened, way)
        return _zip_source(opened, part, options, way)
    if is_tar(opened.stream.peek(TAR_BLOCK_BYTES)):
        return _tar_source(opened, part, options, way)
    if head.startswith(FASTTEXT_MAGIC):
        words = _stream_of(options.words, options) if options.words is not None else None
        return fasttext_source(opened, part, words, options.on_bad_row)
    if head.startswith(HDF5_MAGIC):
        return hdf5_source(opened.name, opened.as_file(), part, options.limits)
    if head.startswith((PARQUET_MAGIC, ARROW_MAGIC)):
        columns = Columns(part, options.own_key_column, options.vector_columns)
        path = opened.as_file()
        # A table may have more parts than a process may have open files.
        opened.stream.close()
        return columnar_source(opened.name, path, columns, options.on_bad_row, options.limits)
    if head.startswith(PICKLE_MAGICS):
        _check_leads(opened, way)
        return pickle_source(opened, part, way.location, _opener(options, opened.name))
    if head.startswith(GGUF_MAGIC):
        return gguf_source(opened, part, options.own_key_column)
    if len(head) > 8 and head[8:9] == b"{" and head[4:8] == bytes(4):
        return safetensors_source(opened, part)
    if _JSON_OBJECT.match(head) and not _is_json_lines(opened.stream):
        _check_leads(opened, way)
        return index_source(opened, part, _opener(options, opened.name))
    return _plain_source(opened, head, part, options)


def _plain_source(opened: Opened, head: bytes, part: str | None, options: OpenOptions) -> RowSource:
    """A .npy array or text, which have no parts but columns."""
    if not head.startswith(NPY_MAGIC):
        named = ColumnOptions(part, options.vector_columns, options.own_key_column)
        has_keys = options.keys is not None
        text = TextOptions(named, options.first_field, options.on_bad_row, has_keys)
        return source_of_text(opened.stream, text)
    if part is not None:
        raise InvalidArgument(f"{opened.name} has no parts, so no {part!r} to pick")
    return npy_source(opened)


def _refuse(name: str, head: bytes) -> None:
    """BadFile for a file that begins like a format that we recognise but don't read."""
    if not head:
        raise BadFile(f"{name} is empty")
    for magic, problem in _REFUSED.items():
        if head.startswith(magic):
            raise BadFile(f"{name} {problem}")
    if LEGACY_MAGIC in head:
        raise BadFile(
            f"{name} is a torch file of before 1.6, all of it one pickle; load it with torch and "
            "save it again: torch.save(state_dict, …)"
        )


def _check_depth(opened: Opened, way: _Way) -> None:
    if way.depth >= PACKING_DEPTH_MAX:
        raise BadFile(f"{opened.name} is packed more than {PACKING_DEPTH_MAX} times over")


def _check_leads(opened: Opened, way: _Way) -> None:
    """BadFile for a third file: one file may name another, but there could be a circle."""
    if way.named_by is not None:
        raise BadFile(
            f"{way.named_by} names {opened.name}, which has no rows but names another file"
        )


def _is_json_lines(stream: ByteStream) -> bool:
    """Whether the first line is a JSON object that isn't an index."""
    lines = first_lines(stream)
    try:
        entry = json.loads(lines[0])
    except (ValueError, RecursionError, IndexError):
        return False
    return isinstance(entry, dict) and bool(entry) and "weight_map" not in entry


def _zip_source(opened: Opened, part: str | None, options: OpenOptions, way: _Way) -> RowSource:
    """The rows of a zip archive: torch's, Keras', NumPy's, or another packed file."""
    limits = options.limits
    path = opened.as_file()
    with reading(opened.name):
        archive = options.closing.enter_context(zipfile.ZipFile(path))
    # Not is_dir(), which raises IndexError for an empty name.
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    names = [info.filename for info in infos]
    if len(names) > ARCHIVE_ENTRIES_MAX or len(set(names)) != len(names):
        raise BadFile(
            f"{opened.name} has {len(names)} members, or one twice; {ARCHIVE_ENTRIES_MAX} are read"
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
    sizes = {
        info.filename: info.file_size for info in infos if not info.filename.startswith("__MACOSX/")
    }
    member, inner = _pick_member(opened.name, part, sizes)
    name = f"{opened.name}#{member}"
    stream = unpack_member(archive, archive.getinfo(member), name, limits)
    return _recognise(
        replace(opened, name=name, stream=stream, path=None), inner, options, way.unpacked()
    )


def _pick_member(name: str, part: str | None, sizes: dict[str, int]) -> tuple[str, str | None]:
    """The member of an archive that `part` names, or the only one, and the part of that member."""
    shapes = {member: f"{byte_count} bytes" for member, byte_count in sizes.items()}
    if part is None or part in sizes:
        return pick(name, part, shapes, "member"), None
    first, _, rest = part.partition("#")
    if first in sizes:
        return first, rest or None
    # `part` is a part of the only member.
    return pick(name, None if len(sizes) == 1 else part, shapes, "member"), part


def _tar_source(opened: Opened, part: str | None, options: OpenOptions, way: _Way) -> RowSource:
    # An archive adds no depth of packing itself, but may be the member of another.
    _check_depth(opened, way)
    file = options.closing.enter_context(os.fdopen(open_readonly(opened.as_file()), "rb", 0))
    members = tar_members(file.fileno(), opened.name)
    sizes = {name: member.byte_count for name, member in members.items()}
    member, inner = _pick_member(opened.name, part, sizes)
    name = f"{opened.name}#{member}"
    stream = member_stream(file.fileno(), name, members[member])
    return _recognise(
        replace(opened, name=name, stream=stream, path=None), inner, options, way.unpacked()
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
