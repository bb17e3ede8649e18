"""A request that was seen before means what the generated classes say it does."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gatherd.errors import GatherdError
from gatherd.store.query import ByKey
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.types import Lookup
from gatherd_server.wire.lookups import lookup_of, parse, seen_lookup
from support.small_engine import LIMITS, lookup_request

ids = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
fields = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["DTYPE_FLOAT32", "DTYPE_FLOAT16"]),
        "missing": st.sampled_from(["MISSING_ERROR", "MISSING_ZERO", "MISSING_DEFAULT"]),
        "version": st.integers(0, 300),
    },
)


def encoded(table: str, rows: list[int], more: dict[str, Any], *, twice: bool) -> bytes:
    body = lookup_request(table, np.asarray(rows, np.int64), **more).SerializeToString()
    # A field that comes again counts, and nested ones add up: valid, and nobody's habit.
    return body + lookup_request(table, [9]).SerializeToString() if twice else body


def outcome(body: bytes) -> Lookup | None:
    try:
        return lookup_of(parse(embedding_pb2.LookupRequest(), body, LIMITS))
    except GatherdError:
        return None


def told(lookup: Lookup | None) -> object:
    if lookup is None or isinstance(lookup.asked, ByKey):
        return lookup
    return lookup._replace(asked=(lookup.asked.dtype.str, lookup.asked.tolist()))  # type: ignore[arg-type]


@given(
    st.sampled_from(["a", "words"]), ids, ids, fields, fields, st.booleans(), st.booleans(),
    st.integers(0, 10_000), st.integers(0, 255),
)  # fmt: skip
def test_what_was_seen_is_read_as_it_would_be(
    table: str,
    first: list[int],
    second: list[int],
    more: dict[str, Any],
    other: dict[str, Any],
    twice: bool,
    again: bool,
    where: int,
    byte: int,
) -> None:
    body = encoded(table, first, more, twice=twice)
    lookup = outcome(body)
    if lookup is None:
        return
    seen = seen_lookup(body, lookup)
    if not twice:
        assert seen is not None
    if seen is None:
        return
    # The same, other ids, other fields, and one byte changed anywhere.
    changed = bytearray(body)
    changed[where % len(body)] = byte
    for later in (
        body,
        encoded(table, second, more, twice=twice),
        encoded(table, first, other, twice=again),
        bytes(changed),
    ):
        if len(later) == len(body):
            read = seen.lookup_of(later)
            assert read is None or told(read) == told(outcome(later))
    assert told(seen.lookup_of(body)) == told(lookup)
