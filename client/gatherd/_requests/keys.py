"""The arguments and the result of a page of keys; store/key_pages.py says what a page is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import (
    REPLY_TYPES,
    LookupSpec,
    check_table,
    check_version,
    key_array,
    prepare,
)
from gatherd._requests.tables import check_count
from gatherd._shown import Shown
from gatherd.errors import InvalidArgument
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import FoundKeys, KeyQuery, Missing


@dataclass(frozen=True, slots=True, eq=False)
class KeyPage(Shown):
    """One page of a table's keys, in the order of their ids.

    `keys`, (n,), are as `keys_of` returns them, and `ids`, int64 (n,), are their rows. `next` is
    the `start` of the next page, None after the last one. `version` is the one that answered; give
    it with `next`, so that all pages are of one version.
    """

    keys: NDArray[Any]
    ids: NDArray[np.int64]
    version: int
    next: int | None

    def __len__(self) -> int:
        return self.ids.size

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Each key as a str or an int, with its id."""
        return iter(zip(self.keys.tolist(), self.ids.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class KeysSpec:
    """Which page of which table's keys is asked for; `query.prefix` is in UTF-8."""

    table: str
    query: KeyQuery
    version: int = LIVE_VERSION


def prepare_ids_of(
    table: object, keys: object, allow_missing: object, version: object
) -> LookupSpec:
    """Check the arguments of Client.ids_of: as a lookup by key, whose rows aren't wanted."""
    if keys is None:
        raise InvalidArgument("no keys were given")
    if not isinstance(allow_missing, bool):
        raise InvalidArgument(f"allow_missing is True or False, not {allow_missing!r}")
    missing = Missing.ZERO if allow_missing else Missing.ERROR
    return prepare(table, None, keys, REPLY_TYPES["float32"], missing.value, version=version)


def prepare_keys(
    table: object, prefix: object, limit: object, start: object, version: object
) -> KeysSpec:
    """Check the arguments of Client.keys."""
    name, _ = check_table(table)
    count = check_count("limit", limit)
    if not count:
        raise InvalidArgument("limit=0 asks for no keys; a page has at least one")
    query = KeyQuery(check_prefix(prefix), count, check_count("start", start))
    return KeysSpec(name, query, check_version("version", version))


def key_page(found: FoundKeys) -> KeyPage:
    """A page as callers get it."""
    return KeyPage(key_array(found.keys), found.ids, found.version, found.next)


def check_prefix(prefix: object) -> bytes:
    """The bytes of a prefix of keys, none for None; InvalidArgument if it isn't text."""
    if prefix is None:
        return b""
    if isinstance(prefix, bytes):
        return prefix
    if not isinstance(prefix, str):
        raise InvalidArgument(f"prefix is a str or bytes, not {prefix!r}")
    try:
        return prefix.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument(f"prefix={prefix[:64]!a} isn't text") from None
