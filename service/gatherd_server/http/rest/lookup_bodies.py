"""The bodies and query parameters of REST's lookups, as the engine takes them."""

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import QueryParams

from gatherd.errors import InvalidArgument
from gatherd.store.bags import check_offsets, check_weights, flat_weights, jagged
from gatherd.store.dtypes import parse_reply_dtype
from gatherd.store.ids import as_id_array
from gatherd.store.keys import StringKeys
from gatherd.store.query import (
    BAG_POLICIES,
    Asked,
    BagsQuery,
    ByKey,
    KeyQuery,
    VectorForm,
    parse_missing,
    parse_pooling,
)
from gatherd.store.scans import ScanQuery
from gatherd_server.http.json_bounds import check_rest
from gatherd_server.http.media import NPY, OCTETS
from gatherd_server.http.rest import arrays
from gatherd_server.http.rest.schemas import (
    VERSION_MAX,
    IdsOfBody,
    KeysOfBody,
    LookupBagsBody,
    LookupBagsManyBody,
    LookupBody,
    LookupManyBody,
    parse,
)
from gatherd_server.http.rest.update_schemas import DeleteRowsBody, UpdateBody
from gatherd_server.types import Limits, Lookup
from gatherd_server.wire.checks import in_table

_OPTIONS: Final = ("by", "dtype", "missing", "version", "dims", "normalize", "with_lsn")
_KEYS_OPTIONS: Final = ("prefix", "limit", "start", "version")
_SCAN_OPTIONS: Final = ("cursor", "limit", "prefix", "version", "dtype", "slots")
_RAW_OPTIONS: Final = ("ids_dtype", "shape", *_OPTIONS)
# The id itself, a weight and an offset.
_BAG_VALUES_MAX: Final = 3

Body = TypeVar("Body", LookupBody, LookupBagsBody)
Find = Callable[[Any], dict[str, Any]]


def lookup_of(
    media_type: str, table: str, body: bytes, query: QueryParams, limits: Limits
) -> Lookup:
    """A lookup of one table, by the body's media type. InvalidArgument when it isn't one."""
    if media_type == NPY:
        options = query_options(query, _OPTIONS, "a .npy has these: " + ", ".join(_OPTIONS))
        return _query_lookup(table, arrays.ids_from_npy(body), options)
    if media_type == OCTETS:
        options = query_options(
            query, _RAW_OPTIONS, "raw ids have these: " + ", ".join(_RAW_OPTIONS)
        )
        ids = arrays.ids_from_octets(body, options.get("ids_dtype", "int64"), options.get("shape"))
        return _query_lookup(table, ids, options)
    asked = parse(LookupBody, _json_body(body, query, 1, limits))
    return _rows_lookup(table, asked, body, lambda value: value)


def lookups_of(body: bytes, query: QueryParams, limits: Limits) -> list[Lookup]:
    """Lookups of many tables, from JSON."""
    asked = parse(LookupManyBody, _json_body(body, query, limits.tables_max, limits)).tables
    return _many(asked, body, limits, _rows_lookup)


def bag_lookup_of(table: str, body: bytes, query: QueryParams, limits: Limits) -> Lookup:
    """Bags of one table, from JSON."""
    asked = parse(LookupBagsBody, _json_body(body, query, 1, limits, _BAG_VALUES_MAX))
    return _bag_lookup(table, asked, body, lambda value: value)


def bag_lookups_of(body: bytes, query: QueryParams, limits: Limits) -> list[Lookup]:
    """Bags of many tables, from JSON."""
    value = _json_body(body, query, limits.tables_max, limits, _BAG_VALUES_MAX)
    asked = parse(LookupBagsManyBody, value).tables
    return _many(asked, body, limits, _bag_lookup)


def keys_of_request(body: bytes, query: QueryParams, limits: Limits) -> tuple[arrays.Ids, int]:
    """The ids and the version of a request for keys, from JSON."""
    asked = parse(KeysOfBody, _json_body(body, query, 1, limits))
    ids = arrays.from_json(as_id_array, asked.ids, lambda value: value["ids"], body)
    return ids, asked.version


def ids_of_request(body: bytes, query: QueryParams, limits: Limits) -> tuple[IdsOfBody, Asked]:
    """A request for the ids of keys, and the keys, from JSON."""
    asked = parse(IdsOfBody, _json_body(body, query, 1, limits))
    return asked, keys_of(asked, body, lambda value: value)


def list_keys_request(query_string: bytes) -> tuple[KeyQuery, int]:
    """The query and the version of a request for a page of keys, from the URL's query.

    A prefix that isn't UTF-8 is percent-encoded bytes, and taken as these bytes.
    """
    hint = "a page of keys has these: " + ", ".join(_KEYS_OPTIONS)
    options = query_options(_raw_query(query_string), _KEYS_OPTIONS, hint)
    query = KeyQuery(
        options.get("prefix", "").encode("utf-8", "surrogateescape"),
        _query_number(options, "limit", "the most keys of a page"),
        _query_number(options, "start", "the id to begin at"),
    )
    return query, query_version(options, "version")


def scan_query(query_string: bytes) -> ScanQuery:
    """The page of rows that a URL's query asks for; a prefix is as for a page of keys."""
    hint = "a page of rows has these: " + ", ".join(_SCAN_OPTIONS)
    options = query_options(_raw_query(query_string), _SCAN_OPTIONS, hint)
    slots = options.get("slots", "false")
    if slots not in ("true", "false"):
        raise InvalidArgument(f"slots is {slots[:64]!r}; it is true or false")
    return ScanQuery(
        _cursor(options.get("cursor", "")),
        _query_number(options, "limit", "the most rows of a page"),
        options.get("prefix", "").encode("utf-8", "surrogateescape"),
        parse_reply_dtype(options.get("dtype", "float32")),
        slots == "true",
        query_version(options, "version"),
    )


def _cursor(text: str) -> bytes:
    """The bytes of a cursor, which a page gives in base64url."""
    try:
        return base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidArgument(
            f"the cursor {text[:64]!a} isn't one that a page of rows came with; begin the scan "
            "anew, without one"
        ) from None


def _raw_query(query_string: bytes) -> QueryParams:
    """The URL's query; percent-encoded bytes that aren't UTF-8 are kept."""
    text = query_string.decode("latin-1")
    return QueryParams(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))


def no_options(query: QueryParams) -> None:
    """InvalidArgument if there are query parameters: a JSON body takes none."""
    query_options(query, (), "with a JSON body the options stand in the body")


def _json_body(
    body: bytes, query: QueryParams, lookup_count: int, limits: Limits, values_per_id: int = 1
) -> object:
    no_options(query)
    check_rest(body, limits, lookup_count, values_per_id)
    return arrays.parse_json(body)


def _many(
    asked: dict[str, Body],
    body: bytes,
    limits: Limits,
    read: Callable[[str, Body, bytes, Find], Lookup],
) -> list[Lookup]:
    limits.check("tables_max", "the request asks for", len(asked))
    lookups = []
    for table, part in asked.items():
        try:
            lookups.append(read(table, part, body, _part_of(table)))
        except InvalidArgument as error:
            raise in_table(error, table) from None
    return lookups


def _part_of(table: str) -> Find:
    return lambda value: value["tables"][table]


def _rows_lookup(table: str, asked: LookupBody, body: bytes, find: Find) -> Lookup:
    rows = asked_rows(asked, body, find)
    return Lookup(
        table,
        rows,
        parse_reply_dtype(asked.dtype),
        parse_missing(asked.missing),
        asked.version,
        None,
        _form(asked.dims, normalize=asked.normalize),
        asked.with_lsn,
    )


def asked_rows(
    asked: LookupBody | LookupBagsBody | UpdateBody, body: bytes, find: Find, what: str = "a lookup"
) -> Asked:
    """The ids or keys of one table's part, which `find` finds in the JSON of `body`."""
    if (asked.ids is None) is (asked.keys is None):
        raise InvalidArgument(f"{what} has either ids or keys")
    if asked.keys is None:
        return arrays.from_json(as_id_array, asked.ids, lambda value: find(value)["ids"], body)
    return keys_of(asked, body, find)


def keys_of(
    asked: LookupBody | LookupBagsBody | UpdateBody | DeleteRowsBody | IdsOfBody,
    body: bytes,
    find: Find,
) -> ByKey:
    """The keys of one table's part, which `find` finds in the JSON of `body`."""
    return ByKey(
        arrays.from_json(
            lambda keys: arrays.keys_from_json(keys, asked.encoding),
            asked.keys,
            lambda value: find(value)["keys"],
            body,
        )
    )


def typed(lookup: Lookup, kind_of: Callable[[str], str]) -> Lookup:
    """`lookup` with keys of the table's own kind; see `typed_keys`."""
    asked = arrays.typed_keys(lookup.asked, lambda: kind_of(lookup.table))
    return lookup if asked is lookup.asked else lookup._replace(asked=asked)


def _bag_lookup(table: str, asked: LookupBagsBody, body: bytes, find: Find) -> Lookup:
    if asked.offsets is None:
        rows, offsets = _jagged(asked)
    else:
        rows = asked_rows(asked, body, find)
        if len(rows.shape) != 1:
            raise InvalidArgument(f"bags with offsets take flat ids; these have shape {rows.shape}")
        offsets = check_offsets(as_id_array(asked.offsets), rows.size)
    pooling = parse_pooling(asked.mode)
    weights = check_weights(_flat(asked.weights, offsets, rows.size), rows.size, pooling)
    return Lookup(
        table,
        rows,
        parse_reply_dtype(asked.dtype),
        parse_missing(asked.missing, BAG_POLICIES),
        asked.version,
        BagsQuery(offsets, pooling, weights, asked.padding_id),
        _form(asked.dims, normalize=asked.normalize),
        asked.with_lsn,
    )


def _jagged(asked: LookupBagsBody) -> tuple[Asked, Any]:
    if (asked.ids is None) is (asked.keys is None):
        raise InvalidArgument("bags have either ids or keys")
    if asked.keys is None:
        ids, offsets = jagged(asked.ids)
        if isinstance(ids, StringKeys):
            raise InvalidArgument("ids must be integers, not strings; keys can be strings")
        return ids, offsets
    given = asked.keys
    if asked.encoding == "base64":
        given = arrays.from_base64(given)
    keys, offsets = jagged(given, "keys")
    return ByKey(keys), offsets


def _flat(weights: Any, offsets: NDArray[np.int64], id_count: int) -> Any:
    """Weights as a flat list; nested ones must be nested as the bags are."""
    if not (isinstance(weights, list) and any(isinstance(part, list) for part in weights)):
        return weights
    lists = [part if isinstance(part, list) else None for part in weights]
    try:
        return flat_weights(lists, offsets, id_count)
    except InvalidArgument:
        raise InvalidArgument("nested weights must be as long as the bags, one by one") from None


def _query_lookup(table: str, ids: arrays.Ids, options: dict[str, str]) -> Lookup:
    return Lookup(
        table,
        query_rows(ids, options),
        parse_reply_dtype(options.get("dtype", "float32")),
        parse_missing(options.get("missing", "error")),
        query_version(options, "version"),
        None,
        _form(_query_dims(options), normalize=query_flag(options, "normalize")),
        query_flag(options, "with_lsn"),
    )


def _form(dims: int | None, *, normalize: bool) -> VectorForm | None:
    return VectorForm(dims or 0, normalize) if dims or normalize else None


def _query_dims(options: dict[str, str]) -> int | None:
    dims = options.get("dims")
    if dims is None:
        return None
    if not re.fullmatch("[0-9]{1,9}", dims) or not int(dims):
        raise InvalidArgument(f"dims is {dims!r}; it must be a number, 1 or more")
    return int(dims)


def query_flag(options: dict[str, str], name: str) -> bool:
    """The query's parameter `name`, true or false; without it, false."""
    value = options.get(name, "false")
    if value not in ("false", "true"):
        raise InvalidArgument(f"{name} is {value!r}; it must be true or false")
    return value == "true"


def query_rows(ids: arrays.Ids, options: dict[str, str]) -> Asked:
    """Integers of a body as ids or as keys, as the query's `by` says."""
    by = options.get("by", "ids")
    if by not in ("ids", "keys"):
        raise InvalidArgument(f"by is {by!r}; it must be ids or keys")
    return ids if by == "ids" else ByKey(ids)


def query_version(options: dict[str, str], name: str) -> int:
    """The version that the query's parameter `name` gives."""
    return _query_number(options, name, "0 for the live one")


def _query_number(options: dict[str, str], name: str, meaning: str) -> int:
    number = options.get(name, "0")
    if not re.fullmatch("[0-9]{1,20}", number) or int(number) > VERSION_MAX:
        raise InvalidArgument(f"{name} is {number!r}; it must be a number, {meaning}")
    return int(number)


def query_options(query: QueryParams, known: Sequence[str], hint: str) -> dict[str, str]:
    """The query's parameters. InvalidArgument, with `hint`, for one that isn't `known`."""
    options: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in known:
            raise InvalidArgument(f"unknown query parameter {name!r}; {hint}")
        if name in options:
            raise InvalidArgument(f"the query parameter {name!r} is given twice")
        options[name] = value
    return options
