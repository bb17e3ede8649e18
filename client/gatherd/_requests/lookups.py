"""A lookup as the caller asked for it: checked, before anything is sent.

This refuses only what can't be sent; the server decides whether an id or a key has a row. bags.py
does the same for bags.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gatherd._shown import Shown
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, parse_reply_dtype
from gatherd.store.ids import as_id_array
from gatherd.store.keys import Keys, StringKeys, as_keys
from gatherd.store.limits import DIM_MAX, LIVE_VERSION
from gatherd.store.query import (
    ROW_POLICIES,
    Asked,
    BagsQuery,
    ByKey,
    Missing,
    VectorForm,
    parse_missing,
)

IdArray: TypeAlias = NDArray[np.integer[Any]]

_VERSION_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TableInfo(Shown):
    """A table's description. `refused` is empty, or the reason why it can't be looked up.

    `key_kind` is "bytes" (strings), "int64", "uint64", or empty for a table without keys.
    `rows_bytes` and `keys_bytes` are what the rows and the key index take, on disk and mapped;
    `resident_bytes` is how much of the rows is in memory now. `versions` are those that can be
    looked up, ascending. `trainable` says whether it takes updates. `optimizer` has the name under
    "name" and the options, such as "lr"; None for a table that takes no gradients. `lsn` is the
    last update that every lookup sees. `open` is None, or for an open table how its rows come and
    go, by the names of `create_table`; `rows` is how many there are now.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    version: int
    trainable: bool
    refused: str
    key_kind: str = ""
    rows_bytes: int = 0
    keys_bytes: int = 0
    resident_bytes: int = 0
    versions: tuple[int, ...] = ()
    optimizer: dict[str, Any] | None = None
    lsn: int = 0
    open: dict[str, Any] | None = None

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def vector_size(self) -> int:
        """`dim`, as gensim calls it."""
        return self.dim


@dataclass(frozen=True, slots=True, eq=False)
class LookupInfo(Shown):
    """What is known of the vectors of a lookup.

    `version` is the table's version that answered. Every update up to `lsn`, a position in the log,
    is in the vectors; later ones may be. `status`, uint8, is of the shape of the ids or keys: 0
    found, 1 missing.
    """

    version: int
    lsn: int
    status: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on a request and on its reply. 0 means no limit."""

    request_bytes_max: int
    reply_bytes_max: int
    ids_max: int
    tables_max: int


@dataclass(frozen=True, slots=True)
class ReplyType:
    """The dtype on the wire, and that of the caller's array.

    They differ for "bfloat16", which NumPy lacks: it is sent as such and widened to float32.
    """

    wire: DType
    array: np.dtype[Any]

    @property
    def widened(self) -> bool:
        """Whether bfloat16 bits become float32 numbers."""
        return self.wire is DType.BFLOAT16 and self.array == np.float32


@dataclass(frozen=True, slots=True, eq=False)
class LookupSpec:
    """One lookup: `asked` are ids or keys of any shape S, or flat ones that `bags` pools.

    `version` is the one that has to answer, LIVE_VERSION for the live one.
    """

    table: str
    table_bytes: bytes
    asked: Asked
    reply: ReplyType
    missing: Missing
    out: NDArray[Any] | None = None
    bags: BagsQuery | None = None
    version: int = LIVE_VERSION
    form: VectorForm | None = None
    with_lsn: bool = False

    @property
    def dims(self) -> int:
        """How many elements of each vector are asked for; 0 for all."""
        return 0 if self.form is None else self.form.dims

    @property
    def vectors_shape(self) -> tuple[int, ...]:
        """The shape of the answer's vectors, without dim: S, or (bags,)."""
        return self.asked.shape if self.bags is None else self.bags.offsets.shape

    @property
    def vector_count(self) -> int:
        """How many vectors the answer has."""
        return self.asked.size if self.bags is None else self.bags.offsets.size

    def first_id(self, vector: int) -> int:
        """The position, in row-major order, of the first id that takes part in a vector."""
        if self.bags is None:
            return vector
        offsets = self.bags.offsets
        return int(offsets[vector]) if vector < offsets.size else self.asked.size

    def cut(self, start: int, stop: int) -> "LookupSpec":
        """The lookup of the vectors from `start` up to `stop` alone: itself if they are all."""
        if start == 0 and stop == self.vector_count:
            return self
        begin, end = self.first_id(start), self.first_id(stop)
        bags = self.bags
        if bags is not None:
            offsets = bags.offsets[start:stop] - begin
            weights = None if bags.weights is None else bags.weights[begin:end]
            bags = replace(bags, offsets=offsets, weights=weights)
        return replace(self, asked=_run(self.asked, begin, end), bags=bags, out=None)


@dataclass(frozen=True, slots=True, eq=False)
class KeysOfSpec:
    """The keys of `asked`, ids of any shape S, in `version`."""

    table: str
    table_bytes: bytes
    asked: IdArray
    version: int = LIVE_VERSION

    @property
    def vector_count(self) -> int:
        """How many keys the answer has."""
        return self.asked.size

    def cut(self, start: int, stop: int) -> "KeysOfSpec":
        """The ids from `start` up to `stop` alone: itself if they are all."""
        if start == 0 and stop == self.asked.size:
            return self
        return replace(self, asked=self.asked.reshape(-1)[start:stop])


def _run(asked: Asked, begin: int, end: int) -> Asked:
    if not isinstance(asked, ByKey):
        return asked.reshape(-1)[begin:end]
    keys = asked.keys
    if not isinstance(keys, StringKeys):
        return ByKey(keys.reshape(-1)[begin:end])
    offsets = keys.offsets[begin : end + 1]
    data = keys.data[offsets[0] : offsets[-1]]
    return ByKey(StringKeys(data, offsets - offsets[0], (end - begin,)))


@dataclass(frozen=True, slots=True)
class Answer:
    """`vectors` of shape S + (dim,), or (bags, dim), and `status`, one per id, of the ids' shape.

    `status` is None when no id may be missing.
    """

    vectors: NDArray[Any]
    status: NDArray[np.uint8] | None
    version: int = LIVE_VERSION
    """The one that answered, if it is known."""
    lsn: int | None = None
    """If it was asked for."""

    def with_status(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """The vectors and their statuses, all 0 if `status` is None. Not for bags."""
        status = self.status
        if status is None:
            status = np.zeros(self.vectors.shape[:-1], np.uint8)
        return self.vectors, status


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call returns beside vectors, and the form of those."""

    status: bool = False
    info: bool = False
    form: VectorForm | None = None

    @classmethod
    def checked(
        cls, return_status: object, return_info: object, dims: object, normalize: object
    ) -> "Returned":
        """That of a caller's arguments. InvalidArgument for wrong ones."""
        if return_status and return_info:
            raise InvalidArgument("return_info has the status; return_status isn't given with it")
        if not isinstance(normalize, bool | np.bool_):
            raise InvalidArgument(f"normalize is True or False, not {normalize!r}")
        if dims is None:
            form = VectorForm(0, True) if normalize else None
            return cls(bool(return_status), bool(return_info), form)
        if isinstance(dims, bool | np.bool_) or not isinstance(dims, int | np.integer):
            raise InvalidArgument(f"dims is an integer, or None for all, not {dims!r}")
        if not 1 <= dims <= DIM_MAX:
            raise InvalidArgument(f"dims={dims} isn't possible: it is from 1 to the table's dim")
        return cls(bool(return_status), bool(return_info), VectorForm(int(dims), bool(normalize)))

    def applied_to(self, spec: LookupSpec) -> LookupSpec:
        """`spec`, asked for what is to be returned."""
        if self.form is None and not self.info:
            return spec
        return replace(spec, form=self.form, with_lsn=self.info)

    def result(self, spec: LookupSpec, answer: Answer) -> Any:
        """The result of a call, of its answer."""
        if not self.status and not self.info:
            return answer.vectors
        status = answer.status
        if status is None:
            status = np.zeros(spec.asked.shape, np.uint8)
        if self.status:
            return answer.vectors, status
        assert answer.lsn is not None  # it was asked for
        return answer.vectors, LookupInfo(answer.version, answer.lsn, status)


REPLY_TYPES: Final = {
    "float32": ReplyType(DType.FLOAT32, np.dtype(np.float32)),
    "float16": ReplyType(DType.FLOAT16, np.dtype(np.float16)),
    "bfloat16": ReplyType(DType.BFLOAT16, np.dtype(np.float32)),
}


def parse_reply_type(dtype: DTypeLike) -> ReplyType:
    """The ReplyType of a caller's `dtype=`; InvalidArgument if no lookup is answered in it."""
    if isinstance(dtype, str):
        known = REPLY_TYPES.get(dtype)
        return known or REPLY_TYPES[parse_reply_dtype(dtype).value]
    try:
        array = np.dtype(dtype)
    except TypeError:
        raise InvalidArgument(f"dtype={dtype!r} isn't a dtype") from None
    if not array.isnative:
        raise InvalidArgument(f"a lookup is answered in native byte order, not as {array.str!r}")
    return ReplyType(parse_reply_dtype(array.name), array)


def check_table(table: object) -> tuple[str, bytes]:
    """A table's name, and its bytes; InvalidArgument if it can't be sent."""
    if not isinstance(table, str):
        raise InvalidArgument(f"a table's name is a str, not {table!r}")
    try:
        return table, table.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"table {table!r}: the name can't be written as UTF-8") from None


def check_version(name: str, version: object) -> int:
    """The version that the argument called `name` asks for, LIVE_VERSION for None."""
    if version is None:
        return LIVE_VERSION
    if isinstance(version, bool | np.bool_) or not isinstance(version, int | np.integer):
        raise InvalidArgument(f"{name} is an integer, or None for any, not {version!r}")
    if not 1 <= version <= _VERSION_MAX:
        raise InvalidArgument(f"{name}={version} isn't possible: versions are counted from 1")
    return int(version)


def check_one_of(ids: object, keys: object) -> None:
    """InvalidArgument unless a lookup has either ids or keys."""
    if ids is None and keys is None:
        raise InvalidArgument("neither ids nor keys were given; a lookup takes one of them")
    if ids is not None and keys is not None:
        raise InvalidArgument("both ids and keys were given; a lookup takes one of them")


def prepare(
    table: object,
    ids: object,
    keys: object,
    reply: ReplyType,
    missing: str,
    out: NDArray[Any] | None = None,
    version: object = None,
) -> LookupSpec:
    """Check a lookup's arguments. InvalidArgument if it can't be sent or filled."""
    name, table_bytes = check_table(table)
    policy = parse_missing(missing, ROW_POLICIES)
    check_one_of(ids, keys)
    asked: Asked = as_id_array(ids) if keys is None else ByKey(as_keys(keys))
    if out is not None:
        check_out(out, asked.shape, reply.array)
    wanted = check_version("version", version)
    return LookupSpec(name, table_bytes, asked, reply, policy, out, version=wanted)


def prepare_keys_of(table: object, ids: object, version: object = None) -> KeysOfSpec:
    """Check the arguments of keys_of."""
    name, table_bytes = check_table(table)
    return KeysOfSpec(name, table_bytes, as_id_array(ids), check_version("version", version))


def key_array(keys: Keys) -> NDArray[Any]:
    """Keys as callers get them: int64 and uint64 as they are, strings as objects of str."""
    if not isinstance(keys, StringKeys):
        return keys
    texts = np.empty(keys.size, object)
    texts[:] = keys.texts()
    return texts.reshape(keys.shape)


def check_out(out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """InvalidArgument unless `out` can be filled with vectors of `shape` and `dtype`."""
    if not isinstance(out, np.ndarray):
        raise InvalidArgument(f"out is a NumPy array, not a {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise InvalidArgument("out is a masked array; give out.data, for its mask isn't filled")
    if out.dtype != dtype or not out.dtype.isnative:
        raise InvalidArgument(f"out has dtype {out.dtype}; this lookup fills one of {dtype}")
    if out.shape[:-1] != shape or out.ndim != len(shape) + 1:
        wanted = ", ".join([*map(str, shape), "dim"])
        raise InvalidArgument(f"out has shape {out.shape}; this lookup fills one of ({wanted})")
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise InvalidArgument("out must be C-contiguous, aligned and writable")


def check_dim(spec: LookupSpec, dim: int) -> None:
    """InvalidArgument if `out` has another dim than the vectors, which is `dim`."""
    if spec.out is not None and spec.out.shape[-1] != dim:
        has = f"has dim {dim}" if not spec.dims else f"is asked for {dim} dims"
        raise InvalidArgument(
            f"table {spec.table!r} {has}; out has shape {spec.out.shape}, "
            f"it must be {(*spec.vectors_shape, dim)}"
        )
