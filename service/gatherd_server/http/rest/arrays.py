"""Ids and vectors as REST carries them: JSON, raw bytes and .npy.

Nothing is computed here. The only conversion is to JSON, which lacks 16-bit floats: they are
written as the equal float32 values. It lacks NaN and infinity too: they are written as null.
"""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument, MalformedRequest
from gatherd.store.dtypes import DType, convert
from gatherd.store.format import evaluate_npy_header, npy_header, plain_npy_header
from gatherd.store.given import NESTING_MAX
from gatherd.store.ids import check_shape, ids_from_bytes
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys, as_keys
from gatherd.store.query import Asked, ByKey
from gatherd.store.table import Gathered
from gatherd_server.http.body import PartsResponse
from gatherd_server.http.media import NPY, OCTETS
from gatherd_server.wire.lookups import Part

Ids = NDArray[np.integer[Any]]
T = TypeVar("T")

# About 5 ms.
JSON_NUMBERS_AT_ONCE: Final = 1 << 17
# The default limit of ids in a request.
JSON_EMPTY_LISTS_MAX: Final = 1 << 20
# Longer bodies aren't parsed again to tell a too large integer from a float.
REREAD_BYTES_MAX: Final = 256 << 10
NPY_HEADER_BYTES_MAX: Final = 64 << 10
ID_DTYPES: Final = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
ARRAY_HEADERS: Final = (
    "Gatherd-Shape",
    "Gatherd-Dtype",
    "Gatherd-Version",
    "Gatherd-Status-Bytes",
)
"""What describes an answer's raw bytes, see `array_headers`."""
LSN_HEADER: Final = "Gatherd-Lsn"
"""Beside them, if it was asked for."""
CURSOR_HEADER: Final = "Gatherd-Cursor"
"""Of a page of rows: where the next one begins, in base64url; absent after the last one."""
PARTS_HEADER: Final = "Gatherd-Parts"
"""Of a page of rows: the name, dtype and shape of each array, as in `ids int64 1000; …`."""
_NPY_ID_DTYPES: Final = {dtype.str: dtype for dtype in ID_DTYPES.values()}
_DECIMAL: Final = re.compile(r"-?[0-9]{1,20}")
_DECIMAL_BYTES: Final = np.frombuffer(b"-0123456789", np.uint8)
_SHAPE = re.compile(r"([0-9]{1,18}(,[0-9]{1,18})*,?)?")


def parse_json(body: bytes) -> Any:
    """The value of a JSON body. MalformedRequest when it isn't JSON in UTF-8."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"the body isn't JSON in UTF-8: {error}") from None


def from_json(
    read: Callable[[object], T], value: object, reread: Callable[[Any], object], body: bytes
) -> T:
    """`read(value)`, for ids or keys as the JSON body gives them; it raises InvalidArgument.

    orjson reads an integer past 64 bits as a float. So, before ids are refused as floats, a short
    body is parsed again, slowly and exactly; `reread` finds the value in it.
    """
    try:
        return read(value)
    except InvalidArgument:
        if len(body) > REREAD_BYTES_MAX:
            raise
        try:
            exact = json.loads(body)
        except (ValueError, RecursionError):
            exact = None  # an integer of thousands of digits; the first error holds
        if exact is not None:
            read(reread(exact))
        raise


def ids_from_octets(body: bytes, dtype_name: str, shape: str | None) -> Ids:
    """Raw little-endian ids of a `shape` such as "2,1"; flat when None, one id when empty."""
    return ids_from_bytes(body, id_dtype(dtype_name), None if shape is None else parse_shape(shape))


def id_dtype(name: str) -> np.dtype[Any]:
    """The little-endian integer dtype called `name`, else InvalidArgument."""
    dtype = ID_DTYPES.get(name)
    if dtype is None:
        known = ", ".join(ID_DTYPES)
        raise InvalidArgument(f"ids must be integers, not {name!r}; ids_dtype is one of {known}")
    return dtype


def parse_shape(shape: str) -> tuple[int, ...]:
    """A shape such as "2,1"; () when empty."""
    if not _SHAPE.fullmatch(shape):
        raise InvalidArgument(f"shape is {shape!r}; it must be lengths with commas, as in 2,1")
    return check_shape("ids", tuple(int(length) for length in shape.split(",") if length))


def ids_from_npy(body: bytes) -> Ids:
    """The ids in a .npy file: little-endian integers in C order.

    MalformedRequest when it isn't a complete .npy file, InvalidArgument when it holds another kind
    of array.
    """
    descr, fortran_order, shape, start = _npy_header(body)
    if not all(type(length) is int and length >= 0 for length in shape):
        raise MalformedRequest(f"the .npy header gives the shape {shape}")
    check_shape("ids", shape)
    dtype = _npy_id_dtype(descr)
    if fortran_order and len(shape) > 1:
        raise InvalidArgument("the .npy is in Fortran order; send np.ascontiguousarray(…) of it")
    expected_bytes = math.prod(shape) * dtype.itemsize
    found_bytes = len(body) - start
    if found_bytes != expected_bytes:
        wrong = "is truncated" if found_bytes < expected_bytes else "has bytes after its end"
        raise MalformedRequest(
            f"the .npy {wrong}: {shape} of {dtype} is {expected_bytes} bytes, {found_bytes} follow"
        )
    return ids_from_bytes(memoryview(body)[start:], dtype, shape)


def _npy_header(body: bytes) -> tuple[object, bool, tuple[Any, ...], int]:
    """The header's descr, order and shape, unchecked, and the offset of the array."""
    if plain := plain_npy_header(body):
        return plain.descr, plain.is_fortran, plain.shape, plain.offset
    header, start = _evaluated_header(body)
    match header:
        case {"descr": descr, "fortran_order": bool(fortran_order), "shape": tuple(shape)}:
            return descr, fortran_order, shape, start
    raise MalformedRequest("the .npy header lacks descr, fortran_order or shape")


def _evaluated_header(body: bytes) -> tuple[object, int]:
    try:
        version = np.lib.format.read_magic(io.BytesIO(body[:8]))
    except ValueError:
        raise MalformedRequest("the body isn't a .npy file: it doesn't begin as one") from None
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise MalformedRequest(f"the .npy is of version {version}; NumPy has 1.0, 2.0 and 3.0")
    # Version 2 has four bytes of header length, version 3 also has UTF-8 in field names.
    length_bytes = 2 if version[0] == 1 else 4
    start = 8 + length_bytes
    header_bytes = int.from_bytes(body[8:start], "little")
    if header_bytes > NPY_HEADER_BYTES_MAX:
        raise MalformedRequest(
            f"the .npy header has {header_bytes} bytes; at most {NPY_HEADER_BYTES_MAX} are taken"
        )
    if len(body) < start + header_bytes:
        raise MalformedRequest("the .npy is truncated in its header")
    try:
        text = body[start : start + header_bytes].decode("utf-8" if version[0] > 2 else "latin-1")
        return evaluate_npy_header(text.strip(" \t\n")), start + header_bytes
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise MalformedRequest("the .npy header is damaged: it isn't a Python dict") from None


def _npy_id_dtype(descr: object) -> np.dtype[Any]:
    if not isinstance(descr, str):
        raise InvalidArgument("the .npy is a structured array; ids must be plain integers")
    if "O" in descr:
        raise InvalidArgument("the .npy holds Python objects; ids must be integers")
    dtype = _NPY_ID_DTYPES.get(descr)
    if dtype is not None:
        return dtype
    if descr.startswith(">") and "<" + descr[1:] in _NPY_ID_DTYPES:
        raise InvalidArgument(
            f"the .npy is big-endian ({descr}); send array.astype('<{descr[1:]}')"
        )
    raise InvalidArgument(f"ids must be integers, not of dtype {descr!r}, as the .npy has them")


def json_lookup_parts(gathered: Gathered) -> list[Part]:
    """One lookup's answer in JSON. InvalidArgument for more empty lists than a reply may have."""
    _check_empty_lists(gathered.vectors.shape)
    described: dict[str, Any] = {
        "shape": gathered.vectors.shape,
        "dtype": gathered.dtype.value,
        "version": gathered.version,
    }
    if gathered.lsn is not None:
        described["lsn"] = gathered.lsn
    if gathered.status is not None:
        described["status"] = gathered.status if gathered.status.ndim else int(gathered.status)
    vectors = json_array(as_float32(gathered.vectors, gathered.dtype))
    return [b'{"vectors":', *vectors, b",", memoryview(json_bytes(described))[1:]]


def _check_empty_lists(shape: tuple[int, ...]) -> None:
    """Empty lists hold no bytes of vectors, so no other limit on replies counts them."""
    if 0 in shape and math.prod(shape[: shape.index(0)]) > JSON_EMPTY_LISTS_MAX:
        raise InvalidArgument(
            f"a reply of shape {shape} would be more than {JSON_EMPTY_LISTS_MAX} empty lists in "
            f"JSON; ask for {OCTETS} or {NPY}"
        )


def json_lookups_parts(tables: Sequence[str], gathered: Sequence[Gathered]) -> list[Part]:
    """The answers of many lookups in JSON."""
    parts: list[Part] = []
    for table, one in zip(tables, gathered, strict=True):
        parts += [b"," if parts else b'{"tables":{', orjson.dumps(table), b":"]
        parts += json_lookup_parts(one)
    return [*parts, b"}}"] if parts else [b'{"tables":{}}']


def json_array(array: NDArray[Any]) -> Iterator[bytes]:
    """A C-contiguous array as nested lists, in pieces, since making one holds the GIL."""
    if array.size <= JSON_NUMBERS_AT_ONCE:
        yield orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        return
    each = array.size // len(array)
    step = max(1, JSON_NUMBERS_AT_ONCE // each)
    for start in range(0, len(array), step):
        yield b"," if start else b"["
        if each > JSON_NUMBERS_AT_ONCE:
            yield from json_array(array[start])
        else:
            piece = array[start : start + step]
            yield orjson.dumps(piece, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    yield b"]"


def json_keys(keys: Keys) -> dict[str, Any]:
    """A batch of keys, to be written by `json_bytes`: strings in base64 when one isn't UTF-8."""
    if not isinstance(keys, StringKeys):
        return {"keys": keys.tolist(), "kind": keys.dtype.name, "encoding": "utf-8"}
    raw = keys.tolist()
    try:
        texts, encoding = [key.decode() for key in raw], "utf-8"
    except UnicodeDecodeError:
        texts, encoding = [base64.b64encode(key).decode() for key in raw], "base64"
    nested = np.array(texts, object).reshape(keys.shape).tolist()
    return {"keys": nested, "kind": "bytes", "encoding": encoding}


def keys_from_json(keys: object, encoding: str) -> Keys:
    """A batch of keys from a JSON body; with `encoding` base64, its strings are base64."""
    return as_keys(from_base64(keys) if encoding == "base64" else keys)


def typed_keys(asked: Asked, kind: Callable[[], str]) -> Asked:
    """`asked` of a JSON body, with decimal strings as integers if the table's keys are integers.

    JavaScript has no integers above 2**53, so 64-bit keys may be written as strings. `kind` gives
    the table's kind of keys, and is called only when all strings are decimal.
    """
    if not isinstance(asked, ByKey) or not isinstance(asked.keys, StringKeys):
        return asked
    keys = asked.keys
    if not keys.size or not np.isin(keys.data, _DECIMAL_BYTES).all():
        return asked
    texts = keys.texts()
    if not all(map(_DECIMAL.fullmatch, texts)) or kind() == KeyKind.BYTES.value:
        return asked
    return ByKey(as_keys(np.array([int(text) for text in texts], object).reshape(keys.shape)))


def from_base64(keys: object, depth: int = 0) -> object:
    """Nested lists of base64 as nested lists of bytes; other values stay as they are."""
    if isinstance(keys, list) and depth <= NESTING_MAX:
        return [from_base64(key, depth + 1) for key in keys]
    if not isinstance(keys, str):
        return keys
    try:
        return base64.b64decode(keys, validate=True)
    except ValueError:
        raise InvalidArgument(f"the key {keys[:64]!r} isn't base64") from None


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """`value` as JSON, NumPy arrays as nested lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def as_float32(vectors: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Vectors in the storage of `dtype` as float32, which JSON's numbers are written from."""
    if dtype is DType.FLOAT32:
        return vectors
    wide = np.empty(vectors.shape, np.float32)
    convert(vectors, dtype, wide, DType.FLOAT32)
    return wide


def octet_parts(gathered: Gathered) -> list[Part]:
    """The vectors' bytes, then the status bytes if there are any."""
    parts: list[Part] = [raw(gathered.vectors)]
    if gathered.status is not None:
        parts.append(raw(gathered.status))
    return parts


def npy_parts(gathered: Gathered) -> list[Part]:
    """A .npy of the vectors, then another of the status if there is any."""
    # ml_dtypes saves bfloat16 as two void bytes, which a view turns into bfloat16 again.
    descr = "<V2" if gathered.dtype is DType.BFLOAT16 else gathered.vectors.dtype.str
    parts: list[Part] = [npy_header(descr, gathered.vectors.shape), raw(gathered.vectors)]
    if gathered.status is not None:
        parts += [npy_header("|u1", gathered.status.shape), raw(gathered.status)]
    return parts


def array_headers(
    shape: tuple[int, ...], dtype: DType, version: int, status_bytes: int
) -> dict[str, str]:
    """The headers that describe the bytes of `octet_parts` and `npy_parts`."""
    values = (",".join(map(str, shape)), dtype.value, str(version), str(status_bytes))
    return dict(zip(ARRAY_HEADERS, values, strict=True))


def array_response(media_type: str, parts: Sequence[Part], gathered: Gathered) -> PartsResponse:
    """A lookup's arrays, with the headers that describe them."""
    shape, status = gathered.vectors.shape, gathered.status
    status_bytes = 0 if status is None else status.nbytes
    headers = array_headers(shape, gathered.dtype, gathered.version, status_bytes)
    if gathered.lsn is not None:
        headers[LSN_HEADER] = str(gathered.lsn)
    return PartsResponse(parts, {"Content-Type": media_type, **headers})


def raw(array: NDArray[Any]) -> Part:
    """The bytes of a C-contiguous array."""
    # An array without elements has strides that a memoryview can't cast.
    return array.data.cast("B") if array.size else b""
