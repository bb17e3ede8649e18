"""Rows and keys from the columns of Arrow record batches. Callers pass in pyarrow.

Vectors are a column of lists (of fixed size, of one length, list views, or Arrow's extension type
of fixed-shape tensors), or several columns of numbers. Keys are strings, bytes, integers, or
decimals without a fraction.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys, StringKeys
from gatherd.store.parts import list_parts, pick
from gatherd_server.loaders.records import select_columns

_DTYPES = {"halffloat": DType.FLOAT16, "float": DType.FLOAT32, "double": DType.FLOAT64}
_KNOWN = "float16, float32, float64"


def stored_type(pa: Any, kind: Any) -> Any:
    """The storage type of an extension type; any other type itself."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _stored(pa: Any, column: Any) -> Any:
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


class ListColumn:
    """A column of lists, as rows."""

    def __init__(self, pa: Any, field: Any) -> None:
        self._pa = pa
        self._name = field.name
        self._type = stored_type(pa, field.type)
        self.names = [field.name]
        self.dtype = _DTYPES[str(self._type.value_type)]

    @property
    def title(self) -> str:
        """Its name in errors."""
        return str(self._name)

    @property
    def dim(self) -> int | None:
        """The type's dim, or None for lists of any length."""
        is_fixed = self._pa.types.is_fixed_size_list(self._type)
        return int(self._type.list_size) if is_fixed else None

    def first_length(self, batch: Any) -> int | None:
        """The length of the first list of a batch that isn't null."""
        lengths = self._column(batch).value_lengths().drop_null()
        return int(lengths[0].as_py()) if len(lengths) else None

    def rows(self, batch: Any, dim: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The rows, (n, dim), and which of them are whole; the others' values mean nothing."""
        column = self._column(batch)
        if _is_view(self._pa, column.type):
            return _rows_of_views(column, dim, self.dtype)
        return _rows_of_lists(self._pa, column, dim, self.dtype)

    def _column(self, batch: Any) -> Any:
        return _stored(self._pa, batch.column(batch.schema.get_field_index(self._name)))


class NumberColumns:
    """Several columns of numbers, as rows."""

    def __init__(self, name: str, schema: Any, names: list[str]) -> None:
        kinds = {column: str(schema.field(column).type) for column in names}
        for column, kind in kinds.items():
            if kind not in _DTYPES:
                raise InvalidArgument(
                    f"{name}: --vector-columns takes {column!r}, which is {kind}; a vector is of "
                    f"{_KNOWN}"
                )
        self.names = names
        # The widest dtype: no column's numbers lose precision in it.
        self.dtype = max((_DTYPES[kind] for kind in kinds.values()), key=lambda each: each.itemsize)
        self.dim = len(names)
        self.title = names[0] if len(names) == 1 else f"{names[0]}…{names[-1]}"

    def rows(self, batch: Any, dim: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The rows, (n, dim), and which of them are free of nulls."""
        rows = np.empty((len(batch), dim), self.dtype.storage)
        is_good = np.ones(len(batch), np.bool_)
        for index, name in enumerate(self.names):
            column = batch.column(batch.schema.get_field_index(name))
            if column.null_count:
                is_good &= np.asarray(column.is_valid())
            rows[:, index] = column.to_numpy(zero_copy_only=False)
        return rows, is_good


def find_vectors(
    pa: Any, name: str, schema: Any, lists: str | None, numbers: str | None
) -> ListColumn | NumberColumns:
    """The vectors' column: the one named `lists`, the only one, or those that `numbers` names.

    InvalidArgument, with the reason against each column, when none is suitable.
    """
    names = list(schema.names)
    if len(set(names)) != len(names):
        raise BadFile(f"{name} has two columns of one name")
    if numbers is not None:
        if lists is not None:
            raise InvalidArgument(f"{name}: #{lists} and --vector-columns are one too many")
        return NumberColumns(name, schema, select_columns(name, names, numbers))
    wrong = {field.name: f"{field.type}: {_unfit(pa, field.type)}" for field in schema}
    usable = {field.name: str(field.type) for field in schema if not _unfit(pa, field.type)}
    if lists in wrong and lists not in usable:
        raise InvalidArgument(f"{name}: the column {lists!r} is {wrong[str(lists)]}")
    if not usable and lists is None:
        raise InvalidArgument(
            f"{name} holds no column of vectors; name those of one number each by "
            f"--vector-columns, as 'emb_*'. There are:{list_parts(wrong)}"
        )
    return ListColumn(pa, schema.field(pick(name, lists, usable, "column")))


def _unfit(pa: Any, kind: Any) -> str:
    """Why a column isn't one of vectors; empty when it is."""
    types, stored = pa.types, stored_type(pa, kind)
    if str(stored) in _DTYPES:
        return "a number each"
    is_list = (
        types.is_fixed_size_list(stored) or types.is_list(stored) or types.is_large_list(stored)
    )
    if not is_list and not _is_view(pa, stored):
        return "no list"
    if str(stored.value_type) not in _DTYPES:
        return f"a table is of {_KNOWN}"
    order = getattr(kind, "permutation", None)
    if order is not None and list(order) != sorted(order):
        return "its dimensions are permuted; write them in order"
    return ""


def _is_view(pa: Any, kind: Any) -> bool:
    return _is(pa, "list_view", kind) or _is(pa, "large_list_view", kind)


def _rows_of_lists(
    pa: Any, column: Any, dim: int, dtype: DType
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    count = len(column)
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(count, dim)
    else:
        lengths = np.asarray(column.value_lengths().fill_null(-1))
    is_good = np.asarray(column.is_valid()) & (lengths == dim)
    # Null rows of fixed size keep their room in `values`; flatten() drops them, and heeds
    # slices.
    flat = column.flatten()
    whole = np.asarray(column.is_valid()) & (lengths >= 0)
    ends = np.cumsum(np.where(whole, lengths, 0))
    data, missing = _numbers(flat, dtype)
    rows = np.zeros((count, dim), dtype.storage)
    if is_good.all():
        rows = data.reshape(count, dim)
    else:
        for row in np.flatnonzero(is_good).tolist():
            rows[row] = data[ends[row] - dim : ends[row]]
    if missing is not None:
        for row in np.flatnonzero(is_good).tolist():
            is_good[row] = not missing[ends[row] - dim : ends[row]].any()
    return rows, is_good


def _rows_of_views(column: Any, dim: int, dtype: DType) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    # Not by a cast to lists, which loses the rows after a null (pyarrow 26).
    begins, lengths = np.asarray(column.offsets), np.asarray(column.sizes)
    is_good = np.asarray(column.is_valid()) & (lengths == dim)
    rows = np.zeros((len(column), dim), dtype.storage)
    for row in np.flatnonzero(is_good).tolist():
        data, missing = _numbers(column.values.slice(int(begins[row]), dim), dtype)
        rows[row] = data
        is_good[row] = missing is None
    return rows, is_good


def _numbers(values: Any, dtype: DType) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The values, and which of them are null, if any is."""
    missing = np.asarray(values.is_null()) if values.null_count else None
    filled = values.fill_null(np.nan) if missing is not None else values
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype.storage), missing


# --- keys


def find_keys(pa: Any, name: str, schema: Any, column: str) -> KeyKind:
    """The kind of the key column's keys; InvalidArgument when it has none."""
    usable = {field.name: str(field.type) for field in schema if key_kind(pa, field.type)}
    kind = key_kind(pa, schema.field(pick(name, column, usable, "key column")).type)
    assert kind is not None
    return kind


def key_kind(pa: Any, kind: Any) -> KeyKind | None:
    """The kind of the keys in a column of this type; None when they can't be keys."""
    types, kind = pa.types, stored_type(pa, kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if _is_text(pa, kind) or _is_bytes(pa, kind):
        return KeyKind.BYTES
    if types.is_signed_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return KeyKind.INT64
    return KeyKind.UINT64 if types.is_unsigned_integer(kind) else None


def keys_of(pa: Any, batch: Any, name: str, kind: KeyKind) -> tuple[Keys, NDArray[np.bool_]]:
    """A batch's key column as keys, and which rows have one."""
    column = _stored(pa, batch.column(batch.schema.get_field_index(name)))
    has_key = np.asarray(column.is_valid())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind is not KeyKind.BYTES:
        if pa.types.is_decimal(column.type):
            column = _integers(pa, column)
            has_key = np.asarray(column.is_valid())
        numbers = column.fill_null(0) if column.null_count else column
        wanted = np.int64 if kind is KeyKind.INT64 else np.uint64
        return np.asarray(numbers.to_numpy(zero_copy_only=False), wanted), has_key
    column = column.cast(pa.large_binary())
    if column.null_count:
        column = column.fill_null(b"")
    _, raw_offsets, raw_data = column.buffers()
    offsets = np.frombuffer(raw_offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(raw_data or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    has_key &= (lengths >= 1) & (lengths <= KEY_BYTES_MAX)
    return StringKeys(data, offsets - offsets[0], (len(column),)), has_key


def _integers(pa: Any, column: Any) -> Any:
    """Decimals without a fraction as int64; null for too large ones."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        fits = [None if key is None or not -(2**63) <= key < 2**63 else int(key)
                for key in column.to_pylist()]  # fmt: skip
        return pa.array(fits, pa.int64())


def _is_text(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or _is(pa, "string_view", kind)
    )


def _is_bytes(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or _is(pa, "binary_view", kind)
    )


def _is(pa: Any, name: str, kind: Any) -> bool:
    """Whether `kind` is of a type that some releases of pyarrow lack."""
    check = getattr(pa.types, f"is_{name}", None)
    return check is not None and bool(check(kind))
