"""Errors about a run of ids or keys, restated for the whole lookup that the caller made."""

import re
from collections.abc import Sequence

import numpy as np

from gatherd._plans.chunks import Piece
from gatherd._requests.lookups import KeysOfSpec, LookupSpec
from gatherd.errors import IdOutOfRange, InvalidArgument, KeyNotFound
from gatherd.store.ids import in_range, out_of_range_error
from gatherd.store.keys import HINT, key_not_found_error
from gatherd.store.query import ByKey

_KEY_POSITION = re.compile(r"keys\[(\d{1,18})\]")


def in_whole(
    error: IdOutOfRange | KeyNotFound,
    specs: Sequence[LookupSpec | KeysOfSpec],
    pieces: Sequence[Piece],
) -> InvalidArgument:
    """`error` restated for the lookup that the caller made, instead of the piece that was sent.

    `error` itself if it is right already, or doesn't say enough.
    """
    for piece in pieces:
        spec = specs[piece.lookup]
        whole = piece.start == 0 and piece.stop == spec.vector_count
        if spec.table == error.metadata.get("table") and not whole:
            return (
                _ids_in_whole(error, spec)
                if isinstance(error, IdOutOfRange)
                else (_keys_in_whole(error, spec, piece))
            )
    return error


def _ids_in_whole(error: IdOutOfRange, spec: LookupSpec | KeysOfSpec) -> IdOutOfRange:
    rows, ids = error.metadata.get("rows", ""), spec.asked
    if isinstance(ids, ByKey) or not rows.isdecimal():
        return error
    found = in_range(ids, int(rows))
    bags = spec.bags if isinstance(spec, LookupSpec) else None
    if bags is not None and bags.padding_id is not None:
        found |= ids == bags.padding_id  # padding needn't have a row
    return error if found.all() else out_of_range_error(spec.table, ids, int(rows), found)


def _keys_in_whole(error: KeyNotFound, spec: LookupSpec | KeysOfSpec, piece: Piece) -> KeyNotFound:
    asked = spec.asked
    if not isinstance(asked, ByKey) or not isinstance(spec, LookupSpec):
        return error
    begin, end = spec.first_id(piece.start), spec.first_id(piece.stop)
    found = (_KEY_POSITION.fullmatch(name) for name in error.metadata)
    places = sorted(begin + int(match[1]) for match in found if match)
    count = error.metadata.get("offenders", "")
    if not places or places[-1] >= end or not count.isdecimal():
        return error
    # Only the server knows which keys have no row, and it names the first ones. All keys of the
    # pieces before this one have rows, so those are the first ones of the whole lookup as well. Of
    # the others in this piece it gives only the number; their places are never shown, so any places
    # after the named ones will do. Pieces after this one weren't sent, and aren't counted.
    rows = np.zeros(asked.size, np.int64)
    rows[places] = -1
    more = max(0, int(count) - len(places))
    rows[places[-1] + 1 : min(end, places[-1] + 1 + more)] = -1
    hint = error.metadata.get(HINT, "")
    return key_not_found_error(spec.table, asked.keys, rows.reshape(asked.shape), hint)
