"""A table of a client, and its description: what the blocking and the awaited handle share."""

from collections.abc import Callable
from dataclasses import Field, fields
from inspect import signature
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import TableInfo
from gatherd._requests.neighbors import Neighbors
from gatherd._shown import html_table
from gatherd.errors import ClientError, InvalidArgument
from gatherd.store.given import as_given_array

F = TypeVar("F", bound=Callable[..., Any])


class Described(TableInfo):
    """A TableInfo that is asked for when a part of it is first read, and then stays as it is."""

    __slots__ = ("_client", "_known")

    _client: Any
    _known: TableInfo | None

    def __init__(self, client: Any, name: str, known: TableInfo | None = None) -> None:
        # A frozen dataclass has no other way, and its own constructor would want every field.
        for attribute, value in (("name", name), ("_client", client), ("_known", known)):
            object.__setattr__(self, attribute, value)

    def _description(self) -> TableInfo:
        if self._known is None:
            raise ClientError(
                f"table {self.name!r} isn't described yet: `await table.info()` does that"
            )
        return self._known

    def _learn(self, described: "Described") -> None:
        """Take the description of another handle of this table."""
        object.__setattr__(self, "_known", described._known)  # noqa: SLF001 - of this class

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, TableInfo):
            return self is other
        if isinstance(other, Described):
            return self._known is not None and self._known == other._known
        return self._known == other

    def __hash__(self) -> int:
        return hash(self.name)

    def __len__(self) -> int:
        return self.rows

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> NoReturn:
        raise TypeError(
            f"table {self.name!r} isn't iterated, it may have millions of rows: "
            "lookup(range(0, 1000)) has rows, and keys(prefix=…, limit=…) has keys"
        )

    def __contains__(self, key: object) -> bool:
        raise TypeError("`in` can't be awaited: `await table.contains(key)` can")

    def __repr__(self) -> str:
        known, name = self._known, type(self).__name__
        if known is None:
            return f"{name}({self.name!r} of {self._client!r})"
        if known.refused:
            return f"{name}({self.name!r}, refused)"
        keys = f", {known.key_kind} keys" if known.key_kind else ""
        return (
            f"{name}({self.name!r}, {known.rows:,} × {known.dim} {known.dtype}{keys}, "
            f"version {known.version})"
        )

    def _repr_html_(self) -> str:
        """The HTML that a notebook displays; nothing is asked of the server."""
        known = self._known
        if known is None:
            return html_table(repr(self), ("", ""), ())
        rows = [(one.name, getattr(known, one.name)) for one in fields(known)]
        shown = [row for row in rows if row[1] not in ("", None)]
        return html_table(f"table {self.name}", ("", ""), shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._client, self.name, self._known)

    def __copy__(self) -> Self:
        return type(self)(self._client, self.name, self._known)


def _reading(field: "Field[Any]") -> property:
    def read(self: Described) -> Any:
        return getattr(self._description(), field.name)

    read.__annotations__["return"] = field.type
    read.__doc__ = f"`{field.name}` of TableInfo."
    return property(read)


for _field in fields(TableInfo):
    if _field.name != "name":
        setattr(Described, _field.name, _reading(_field))


class Tables(list[TableInfo]):
    """A list of tables, which a notebook shows as one table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The HTML that IPython displays."""
        head = ("name", "rows", "dim", "dtype", "keys", "version", "optimizer", "refused")
        rows = [
            (one.name, one.rows, one.dim, one.dtype, one.key_kind, one.version,
             (one.optimizer or {}).get("name", ""), one.refused)
            for one in self
        ]  # fmt: skip
        return html_table(f"{len(self)} tables", head, rows)


def like(call: Callable[..., Any]) -> Callable[[F], F]:
    """Show the parameters of the client's `call`, but for the table, in a handle's method."""
    known = signature(call)
    shown = [one for name, one in known.parameters.items() if name != "table"]

    def decorate(method: F) -> F:
        method.__signature__ = known.replace(  # type: ignore[attr-defined] # of any function
            parameters=shown
        )
        return method

    return decorate


def terms(given: Any, name: str) -> list[Any]:
    """What `most_similar` is given, one by one: keys, ids, and vectors as float32, (dim,)."""
    if given is None:
        return []
    if isinstance(given, str | bytes | int | np.integer):
        return [given]
    if isinstance(given, list | tuple) and not all(isinstance(one, float) for one in given):
        return [term for i, one in enumerate(given) for term in terms(one, f"{name}[{i}]")]
    array = as_given_array(given, name)
    if array.dtype.kind != "f":
        return array.reshape(-1).tolist()
    if array.ndim not in (1, 2):
        raise InvalidArgument(f"{name} has shape {array.shape}; a vector has one dimension")
    return list(np.atleast_2d(array.astype(np.float32)))


def mean_query(plus: list[Any], minus: list[Any], rows: Any) -> NDArray[np.float32]:
    """The mean of `plus` and of what is opposite to `minus`: vectors, and `rows` at length 1.

    `rows`, (n, dim), are in the place of those that aren't vectors; gensim has it so, too.
    """
    wide = np.asarray(rows, np.float32)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    units = iter(np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0))
    vectors = [one if isinstance(one, np.ndarray) else next(units) for one in (*plus, *minus)]
    dims = sorted({len(one) for one in vectors})
    if len(dims) > 1:
        raise InvalidArgument(f"the vectors have the dims {dims}; they must have that of the table")
    signs = np.repeat(np.array([1, -1], np.float32), [len(plus), len(minus)])
    return np.asarray(signs @ np.stack(vectors) / len(vectors), np.float32)


def named_scores(found: Neighbors, given: list[Any], topn: int) -> list[tuple[Any, float]]:
    """The neighbors of one vector as (key or id, score), without those that were given."""
    names = (found.ids if found.keys is None else found.keys).tolist()
    known = {one.decode("utf-8", "surrogateescape") if isinstance(one, bytes) else one
             for one in given}  # fmt: skip
    pairs = zip(names, found.scores.tolist(), strict=True)
    return [(name, score) for name, score in pairs if name not in known][:topn]
