"""The bodies and query parameters of REST's uploads, as the engine takes them."""

import re
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from starlette.datastructures import QueryParams

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, string_keys_from_wire
from gatherd.store.limits import ROWS_MAX
from gatherd.store.query import ByKey
from gatherd_server.data_dir.uploads.spec import Chunk, UploadSpec
from gatherd_server.http.json_bounds import check_rest
from gatherd_server.http.rest import arrays
from gatherd_server.http.rest.lookup_bodies import no_options, query_options
from gatherd_server.http.rest.schemas import parse
from gatherd_server.http.rest.upload_schemas import BeginUploadBody, PutRowsBody
from gatherd_server.http.rest.values import values_from_json
from gatherd_server.types import Limits, OnDuplicate
from gatherd_server.wire import checks

_RAW_OPTIONS: Final = ("offset", "rows", "crc32")
_NUMBER: Final = re.compile("[0-9]{1,20}")
_NUMBER_BYTES: Final = 8
_LENGTH_BYTES: Final = 4


def begun(body: bytes, query: QueryParams, limits: Limits) -> tuple[str, UploadSpec]:
    """The name of an upload, "" to have one drawn, and what it is to become."""
    no_options(query)
    check_rest(body, limits, 1, value_bytes=_NUMBER_BYTES)
    given = parse(BeginUploadBody, arrays.parse_json(body))
    optimizer = None
    if given.optimizer is not None:
        optimizer = checks.optimizer(given.optimizer.name, given.optimizer.model_extra or {})
    default = None
    if given.default_vector is not None:
        default = tuple(values_from_json(given.default_vector).tolist())
    return given.upload, UploadSpec(
        given.name,
        given.dim,
        DType(given.dtype),
        KeyKind(given.key_kind) if given.key_kind else None,
        given.rows,
        optimizer,
        default,
        given.publish,
        given.if_version,
        given.allow_nonfinite,
        OnDuplicate(given.on_duplicate),
        given.frozen,
    )


def chunk_from_json(
    upload: str, spec: UploadSpec, body: bytes, query: QueryParams, limits: Limits
) -> Chunk:
    """A chunk of numbers and keys in JSON."""
    no_options(query)
    check_rest(body, limits, 1, value_bytes=_NUMBER_BYTES)
    given = parse(PutRowsBody, arrays.parse_json(body))
    values = values_from_json(given.rows)
    if not values.size:
        values = values.reshape(0, spec.dim)
    rows: Any = values
    if spec.dtype is not DType.FLOAT32:
        rows = np.empty(values.shape, spec.dtype.storage)
        convert(values, DType.FLOAT32, rows, spec.dtype)
    keys = None
    if given.keys is not None:
        kind = spec.key_kind.value if spec.key_kind else ""
        asked = ByKey(arrays.keys_from_json(given.keys, given.encoding))
        typed = arrays.typed_keys(asked, lambda: kind)
        assert isinstance(typed, ByKey)
        keys = typed.keys
    return Chunk(upload, given.offset, rows, spec.dtype, keys)


def chunk_from_octets(upload: str, spec: UploadSpec, body: bytes, query: QueryParams) -> Chunk:
    """A chunk of raw bytes: its keys, if the upload has keys, directly followed by its rows.

    Integer keys have 8 bytes each. Of strings the lengths come first, uint32 each; the query's
    `rows` says how many there are.
    """
    options = query_options(query, _RAW_OPTIONS, "raw rows have " + ", ".join(_RAW_OPTIONS))
    if "offset" not in options:
        raise InvalidArgument("offset is required beside raw bytes: the first row's number")
    offset = _number(options, "offset", ROWS_MAX)
    crc = _number(options, "crc32", 2**32 - 1) if "crc32" in options else None
    if crc is not None and zlib.crc32(body) != crc:
        raise InvalidArgument(
            f"the body has crc32 {zlib.crc32(body)}, and was sent with {crc}: it was damaged on "
            "its way; send it again",
            {"upload": upload},
        )
    content = memoryview(body)
    keys, key_bytes = _raw_keys(content, spec, options)
    raw = content[key_bytes:]
    count, rest = divmod(len(raw), spec.row_bytes)
    if rest:
        raise InvalidArgument(
            f"the body has {len(raw)} bytes of rows; that isn't a number of rows of "
            f"{spec.row_bytes} bytes (dim {spec.dim}, {spec.dtype.value})"
        )
    if "rows" in options and _number(options, "rows", ROWS_MAX) != count:
        raise InvalidArgument(f"the body has {count} rows; the query says rows={options['rows']}")
    rows: Any = np.frombuffer(raw, spec.dtype.storage).reshape(count, spec.dim)
    return Chunk(upload, offset, rows, spec.dtype, keys)


def _raw_keys(
    content: memoryview, spec: UploadSpec, options: Mapping[str, str]
) -> tuple[Keys | None, int]:
    """The keys at the beginning of a raw body, and their bytes."""
    if spec.key_kind is None:
        return None, 0
    if spec.key_kind is not KeyKind.BYTES:
        count = len(content) // (8 + spec.row_bytes)
        dtype = "<i8" if spec.key_kind is KeyKind.INT64 else "<u8"
        return np.frombuffer(content[: count * 8], dtype), count * 8
    if "rows" not in options:
        raise InvalidArgument("rows is required beside raw bytes with string keys: how many rows")
    count = _number(options, "rows", ROWS_MAX)
    lengths = content[: count * _LENGTH_BYTES]
    if len(lengths) != count * _LENGTH_BYTES:
        raise InvalidArgument(f"the body ends within the lengths of its {count} keys")
    total = int(np.frombuffer(lengths, "<u4").sum(dtype=np.uint64))
    data = content[len(lengths) : len(lengths) + total]
    return string_keys_from_wire(data, lengths, (count,)), len(lengths) + total


def _number(options: Mapping[str, str], name: str, most: int) -> int:
    text = options[name]
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise InvalidArgument(f"{name} is {text[:64]!r}; it must be a number, at most {most}")
    return int(text)
