"""What `gatherd bench` sends: which tables, which ids or keys, and the SDK's call for each kind.

A push changes no row's values: it adds zeros, or takes a step by gradients of zeros, which is
refused for optimizers that would still move rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd import Client, TableInfo
from gatherd.errors import FailedPrecondition, InvalidArgument
from gatherd.store.query import Missing

ZIPF_EXPONENT: Final = 1.05
# Ranks of Zipf's law that are drawn from: 8 bytes each. Rarer rows are hardly ever asked for.
ZIPF_RANKS_MAX: Final = 4_000_000
# Different ids that a thread asks for in turn.
DRAWN_BATCHES: Final = 32
DRAWN_IDS_MAX: Final = 1 << 20
# These leave a row as it is at a gradient of zeros, unless one of the options is set.
STEADY_OPTIMIZERS: Final = ("sgd", "adagrad", "rowwise-adagrad")
MOVING_OPTIONS: Final = (
    *("momentum", "weight_decay", "decoupled_weight_decay", "regularizer_l1", "regularizer_l2"),
    *("non_neg", "max_norm", "unit_norm"),
)

SCATTER_ADD, APPLY_GRADIENTS = "scatter-add", "apply-gradients"
PUSHES: Final = (SCATTER_ADD, APPLY_GRADIENTS)

Batch = Mapping[str, Any]
"""By table, ids or keys."""
Call = Callable[[Batch], object]


def name_of(tables: tuple[TableInfo, ...]) -> str:
    """What a line of the answer calls the tables of one request."""
    return tables[0].name if len(tables) == 1 else f"{len(tables)} tables"


def tables_of(client: Client, names: tuple[str, ...], by_key: bool) -> list[TableInfo]:
    """Those that are asked for. InvalidArgument when there is nothing to look up."""
    if names:
        tables: list[TableInfo] = [client.table(name) for name in dict.fromkeys(names)]
        empty = [table.name for table in tables if not table.rows]
        if empty:
            raise InvalidArgument(f"table {empty[0]!r} has no rows to look up")
        without = [table.name for table in tables if by_key and not table.key_kind]
        if without:
            raise InvalidArgument(f"table {without[0]!r} has no keys; leave --keys out")
        return tables
    tables = [table for table in client.tables() if table.rows and not table.refused]
    if not tables:
        raise InvalidArgument("there is no table with rows to look up")
    if by_key:
        tables = [table for table in tables if table.key_kind]
        if not tables:
            raise InvalidArgument("no table has keys; leave --keys out")
    return tables


def together(tables: list[TableInfo], counts: tuple[int, ...]) -> list[tuple[TableInfo, ...]]:
    """The tables of each kind of request: each by itself, or the first so many at once."""
    found: list[tuple[TableInfo, ...]] = []
    for count in dict.fromkeys(counts):
        if count > len(tables):
            raise InvalidArgument(f"--tables {count}, and there are {len(tables)} to look up")
        found += [(table,) for table in tables] if count == 1 else [tuple(tables[:count])]
    return found


def check_pushes(tables: list[TableInfo], pushes: tuple[str, ...]) -> None:
    """FailedPrecondition when no table takes updates, or a step of zeros would move rows of one."""
    for kind in pushes:
        if not _pushed(tables, kind):
            what = "gradients" if kind == APPLY_GRADIENTS else "updates"
            raise FailedPrecondition(
                f"none of {', '.join(table.name for table in tables)} takes {what}; "
                "`gatherd set-optimizer NAME sgd` makes a table take them"
            )
    for table in _pushed(tables, APPLY_GRADIENTS) if APPLY_GRADIENTS in pushes else ():
        options = table.optimizer or {}
        moving = [option for option in MOVING_OPTIONS if options.get(option)]
        if options.get("name") not in STEADY_OPTIMIZERS or moving:
            of = f" with {', '.join(moving)}" if moving else ""
            raise FailedPrecondition(
                f"{options.get('name')}{of} moves rows of {table.name!r} also at gradients of "
                "zeros; --push scatter-add leaves them as they are"
            )


def _pushed(tables: Sequence[TableInfo], kind: str) -> tuple[TableInfo, ...]:
    """The tables that take this kind of update."""
    return tuple(
        table
        for table in tables
        if table.trainable and (kind != APPLY_GRADIENTS or table.optimizer is not None)
    )


@dataclass(frozen=True, slots=True)
class Requests:
    """What kinds of requests are measured.

    `batches` are ids a table; where modes pool, `bags` of `bag` ids are, or a batch is if there are
    none. InvalidArgument for bags that nothing pools.
    """

    batches: tuple[int, ...]
    bags: tuple[int, ...]
    bag: int
    dtypes: tuple[Any, ...]
    modes: tuple[Any, ...]
    pushes: tuple[str, ...]
    by_key: bool
    missing: str

    def __post_init__(self) -> None:
        if self.bags and not self.modes:
            raise InvalidArgument("--bags is for requests that pool; give --pool too")

    @property
    def _pooled(self) -> tuple[int, ...]:
        """Ids a table of the requests that pool."""
        return tuple(count * self.bag for count in self.bags) or self.batches

    @property
    def sizes(self) -> list[int]:
        """Ids a table, of all requests."""
        return list(dict.fromkeys((*self.batches, *self._pooled)))

    def draw(
        self,
        client: Client,
        rng: np.random.Generator,
        tables: tuple[TableInfo, ...],
        skew: str,
        size: int,
    ) -> list[Batch]:
        """Batches of `size` ids or keys a table."""
        count = max(1, min(DRAWN_BATCHES, DRAWN_IDS_MAX // (size * len(tables))))
        by_table: dict[str, NDArray[Any]] = {}
        for table in tables:
            drawn: NDArray[Any] = _draw_ids(rng, table.rows, skew, (count, size))
            by_table[table.name] = client.keys_of(table.name, drawn) if self.by_key else drawn
        return [{name: drawn[i] for name, drawn in by_table.items()} for i in range(count)]

    def calls(
        self, client: Client, tables: tuple[TableInfo, ...], size: int
    ) -> Iterator[tuple[str, str, int, Call]]:
        """Each kind of request of that size.

        Its name, the dtype on the wire, the tables that are asked, and how to send it.
        """
        by = " by key" if self.by_key else ""
        filled = "" if self.missing == Missing.ERROR.value else f", {self.missing}"
        for dtype in self.dtypes:
            if size in self.batches:
                yield f"lookup{by}{filled}", dtype, len(tables), self._lookup(client, tables, dtype)
            for mode in self.modes if size in self._pooled else ():
                call = self._bags(client, tables, dtype, mode, size)
                yield f"bags {mode}{by}{filled}", dtype, len(tables), call
        for kind in self.pushes if size in self.batches else ():
            if pushed := _pushed(tables, kind):
                call = self._push(client, pushed, kind, size)
                yield f"{kind}{by}", "float32", len(pushed), call

    def _lookup(self, client: Client, tables: tuple[TableInfo, ...], dtype: Any) -> Call:
        options: dict[str, Any] = {"dtype": dtype, **self._filling()}
        if len(tables) > 1:
            if self.by_key:
                return lambda batch: client.lookup_many(keys=batch, **options)
            return lambda batch: client.lookup_many(batch, **options)
        name = tables[0].name
        if self.by_key:
            return lambda batch: client.lookup(name, keys=batch[name], **options)
        return lambda batch: client.lookup(name, batch[name], **options)

    def _bags(
        self, client: Client, tables: tuple[TableInfo, ...], dtype: Any, mode: Any, size: int
    ) -> Call:
        options: dict[str, Any] = {"dtype": dtype, "mode": mode, **self._filling()}
        by, offsets = "keys" if self.by_key else "ids", np.arange(0, size, self.bag)

        def many(batch: Batch) -> object:
            bags: Any = {name: (asked, offsets) for name, asked in batch.items()}
            return client.lookup_bags_many(**{by: bags}, **options)

        def one(batch: Batch) -> object:
            name = tables[0].name
            return client.lookup_bags(name, **{by: batch[name]}, offsets=offsets, **options)

        return many if len(tables) > 1 else one

    def _push(self, client: Client, tables: tuple[TableInfo, ...], kind: str, size: int) -> Call:
        zeros = {table.name: np.zeros((size, table.dim), np.float32) for table in tables}
        methods: dict[str, tuple[Any, Any]] = {
            SCATTER_ADD: (client.scatter_add, client.scatter_add_many),
            APPLY_GRADIENTS: (client.apply_gradients, client.apply_gradients_many),
        }
        push, push_many = methods[kind]

        def many(batch: Batch) -> object:
            updates = {name: (batch[name], rows) for name, rows in zeros.items()}
            return push_many(**{"keys" if self.by_key else "updates": updates})

        def one(batch: Batch) -> object:
            name = tables[0].name
            if self.by_key:
                return push(name, None, zeros[name], keys=batch[name])
            return push(name, batch[name], zeros[name])

        return many if len(tables) > 1 else one

    def _filling(self) -> dict[str, Any]:
        """Who has places filled in wants to know which."""
        if self.missing == Missing.ERROR.value:
            return {}
        return {"missing": self.missing, "return_status": True}


def _draw_ids(
    rng: np.random.Generator, rows: int, skew: str, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """By Zipf's law the frequent rows are scattered over the table."""
    if skew == "uniform":
        return rng.integers(0, rows, shape)
    ranks = min(rows, ZIPF_RANKS_MAX)
    sums = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -ZIPF_EXPONENT)
    drawn = np.searchsorted(sums / sums[-1], rng.random(shape)).clip(max=ranks - 1)
    # Python's integers, for the product may be more than 64 bits.
    scattered = [[rank * 2_654_435_761 % rows for rank in line] for line in drawn.tolist()]
    return np.array(scattered, np.int64)
