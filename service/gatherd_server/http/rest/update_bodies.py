"""The bodies and query parameters of REST's updates and changes, as the engine takes them."""

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import QueryParams

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.query import Asked
from gatherd_server.data_dir.naming import check_staged
from gatherd_server.http.json_bounds import check_change, check_rest
from gatherd_server.http.media import OCTETS
from gatherd_server.http.rest import arrays
from gatherd_server.http.rest.lookup_bodies import (
    Find,
    asked_rows,
    keys_of,
    no_options,
    query_flag,
    query_options,
    query_rows,
    query_version,
)
from gatherd_server.http.rest.schemas import Body, parse
from gatherd_server.http.rest.update_schemas import (
    CreateBody,
    DeleteRowsBody,
    DeleteRowsManyBody,
    GradientsBody,
    GradientsManyBody,
    InitializerBody,
    OpenBody,
    OptimizerBody,
    PublishBody,
    RollbackBody,
    SetOptimizerBody,
    SnapshotBody,
    UpdateBody,
    UpdateManyBody,
)
from gatherd_server.http.rest.values import update_from_octets, values_from_json
from gatherd_server.snapshots.naming import optional_name
from gatherd_server.types import (
    AddStaged,
    CreateTable,
    DeleteVersion,
    Limits,
    OptimizerSpec,
    Publish,
    Push,
    RequestId,
    Rollback,
    SetOptimizer,
    TableUpdate,
    UpdateOp,
)
from gatherd_server.wire import checks

DimOf = Callable[[str], int]
"""Finds a table's dim, which nested lists and raw bytes without values don't give."""
KindOf = Callable[[str], str]
"""Finds a table's kind of keys: strings in JSON may be integers."""

_RAW_OPTIONS: Final = ("ids_dtype", "shape", "values_dtype", "by", "create", "if_version")
_MODELS: Final[dict[UpdateOp, tuple[type[Any], type[Any]]]] = {
    UpdateOp.SCATTER_ADD: (UpdateBody, UpdateManyBody),
    UpdateOp.APPLY_GRADIENTS: (GradientsBody, GradientsManyBody),
    UpdateOp.ASSIGN: (UpdateBody, UpdateManyBody),
    UpdateOp.DELETE_ROWS: (DeleteRowsBody, DeleteRowsManyBody),
}
_NUMBER: Final = re.compile(r"([0-9]{1,20}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
# The fewest bytes that a number of an update counts as: most have more digits, and a parser makes
# an object of each.
_NUMBER_BYTES: Final = 8


class UpdateReader:
    """Reads the updates by one operation. Tables are asked only for what a request leaves out."""

    def __init__(self, op: UpdateOp, limits: Limits, dim_of: DimOf, kind_of: KindOf) -> None:
        self._op = op
        self._limits = limits
        self._dim_of = dim_of
        self._kind_of = kind_of

    def one(
        self, media_type: str, table: str, body: bytes, query: QueryParams, request_id: RequestId
    ) -> Push:
        """An update of one table, by the body's media type. InvalidArgument when it isn't one."""
        if media_type == OCTETS:
            update = self._raw(table, body, query)
        else:
            given = parse(_MODELS[self._op][0], self._json(body, query, 1))
            update = self._update(table, given, body, lambda value: value)
        return checks.push(self._op, [update], request_id)

    def many(self, body: bytes, query: QueryParams, request_id: RequestId) -> Push:
        """Updates of many tables, from JSON."""
        value = self._json(body, query, self._limits.tables_max)
        parts = dict(parse(_MODELS[self._op][1], value).tables)
        self._limits.check("tables_max", "the request changes", len(parts))
        updates = []
        for table, part in parts.items():
            try:
                updates.append(self._update(table, part, body, _part_of(table)))
            except InvalidArgument as error:
                raise checks.in_table(error, table) from None
        return checks.push(self._op, updates, request_id)

    def _json(self, body: bytes, query: QueryParams, tables: int) -> object:
        no_options(query)
        check_rest(body, self._limits, tables, value_bytes=_NUMBER_BYTES)
        return arrays.parse_json(body)

    def _update(
        self, table: str, given: UpdateBody | DeleteRowsBody, body: bytes, find: Find
    ) -> TableUpdate:
        if isinstance(given, DeleteRowsBody):
            keys = arrays.typed_keys(keys_of(given, body, find), lambda: self._kind_of(table))
            return checks.deleted_rows(table, keys, given.if_version)
        asked = arrays.typed_keys(
            asked_rows(given, body, find, "an update"), lambda: self._kind_of(table)
        )
        values = values_from_json(given.values)
        lr = given.lr if isinstance(given, GradientsBody) else None
        return self._table_update(
            table, asked, values, DType.FLOAT32, lr, given.if_version, creates=given.create
        )

    def _raw(self, table: str, body: bytes, query: QueryParams) -> TableUpdate:
        has_lr = self._op is UpdateOp.APPLY_GRADIENTS
        known = (*_RAW_OPTIONS, "lr") if has_lr else _RAW_OPTIONS
        options = query_options(query, known, "raw updates have these: " + ", ".join(known))
        ids, values, dtype = update_from_octets(
            body,
            options.get("ids_dtype", "int64"),
            options.get("shape"),
            options.get("values_dtype", "float32"),
        )
        lr = _number(options["lr"]) if "lr" in options else None
        version = query_version(options, "if_version")
        asked, creates = query_rows(ids, options), query_flag(options, "create")
        return self._table_update(table, asked, values, dtype, lr, version, creates=creates)

    def _table_update(
        self,
        table: str,
        asked: Asked,
        values: NDArray[Any],
        dtype: DType,
        lr: float | None,
        if_version: int,
        *,
        creates: bool,
    ) -> TableUpdate:
        checks.rows_of(self._op, asked, creates=creates)
        if asked.size == 0 and values.size == 0:
            values = np.empty((*asked.shape, self._dim_of(table)), dtype.storage)
        return TableUpdate(
            table,
            asked,
            checks.values_of(asked, values, dtype),
            None if lr is None else checks.learning_rate(lr, self._op),
            if_version,
            creates,
        )


def _part_of(table: str) -> Find:
    return lambda value: value["tables"][table]


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise InvalidArgument(f"lr is {text[:64]!r}; it must be a number, as in 0.05")
    return float(text)


def create_table(body: bytes, query: QueryParams) -> AddStaged | CreateTable:
    """A new table, from JSON. InvalidArgument for a body that can't be one."""
    given = _body(CreateBody, body, query)
    if given.staged is not None:
        beside = sorted(given.model_fields_set - {"name", "staged"})
        if beside:
            raise InvalidArgument(
                f"a staged table is what its files say; {beside[0]} can't be given with staged"
            )
        return AddStaged(given.name, check_staged(given.staged))
    if given.open is not None and given.dim is not None:
        return _open_table(given, given.open, given.dim)
    if given.rows is None or given.dim is None:
        missing = "rows" if given.rows is None and given.open is None else "dim"
        raise InvalidArgument(f"the member {missing} is required, unless staged is given")
    change = CreateTable(
        given.name,
        given.rows,
        given.dim,
        DType(given.dtype),
        _initializer(given.init),
        given.seed,
        None if given.optimizer is None else _optimizer(given.optimizer),
        frozen=given.frozen,
    )
    return checks.drawn_table(change)


def _open_table(given: CreateBody, options: OpenBody, dim: int) -> CreateTable:
    return checks.open_table(
        given.name,
        given.rows or 0,
        dim,
        DType(given.dtype),
        None if given.optimizer is None else _optimizer(given.optimizer),
        checks.open_spec(init=_initializer(given.init), seed=given.seed, **options.model_dump()),
        frozen=given.frozen,
    )


def publish(table: str, body: bytes, query: QueryParams) -> Publish:
    """A new live version, from JSON."""
    given = _body(PublishBody, body, query)
    staged = check_staged(given.staged) if given.staged else ""
    return Publish(table, staged, given.if_version)


def rollback(table: str, body: bytes, query: QueryParams) -> Rollback:
    """A rollback to an older version, from JSON."""
    given = _body(RollbackBody, body, query)
    return Rollback(table, given.version, given.if_version)


def delete_version(table: str, version: str) -> DeleteVersion:
    """The removal of the version that a URL names."""
    return checks.deleted_version(table, query_version({"version": version}, "version"))


def set_optimizer(table: str, body: bytes, query: QueryParams) -> SetOptimizer:
    """A change of optimizer, from JSON."""
    given = _body(SetOptimizerBody, body, query)
    spec = checks.changed_optimizer(given.optimizer.name, given.optimizer.model_extra or {})
    return SetOptimizer(table, spec, given.if_version)


def snapshot_name(body: bytes, query: QueryParams) -> str:
    """The name for a snapshot, from JSON; "" lets the server choose one."""
    return optional_name(_body(SnapshotBody, body, query).name)


def _initializer(given: str | InitializerBody) -> Initializer:
    if isinstance(given, str):
        return checks.initializer(given, {})
    return checks.initializer(given.name, given.model_extra or {})


def _optimizer(given: OptimizerBody) -> OptimizerSpec:
    return checks.optimizer(given.name, given.model_extra or {})


def _body(model: type[Body], body: bytes, query: QueryParams) -> Body:
    no_options(query)
    check_change(body)
    return parse(model, arrays.parse_json(body))
