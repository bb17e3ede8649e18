"""What an open table can be made with, and what of its options is refused."""

from dataclasses import replace
from typing import Any

import pytest

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.open_spec import OnFull, OpenSpec
from gatherd_server.wire.checks import open_spec, open_table

SPEC = OpenSpec(
    KeyKind.UINT64, 2**40 - 2, 2**64 - 1, Initializer.parse("normal", {"stddev": 2.0}), True, 255,
    OnFull.EVICT_LFU, 86_400,
)  # fmt: skip


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, creates=False, ttl_seconds=0)], ids=str)
def test_a_manifest_has_all_of_it(spec: OpenSpec) -> None:
    assert OpenSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("keys", "float64"), ("rows_max", 0), ("rows_max", 2**40), ("rows_max", "7")),
        *(("seed", -1), ("init", {"name": "orthogonal"}), ("init", None), ("on_missing", "no")),
        *(("admit_after", 0), ("admit_after", 256), ("on_full", ""), ("ttl_seconds", -5)),
        ("ttl_seconds", None),
    ],
)
def test_a_damaged_manifest_is_refused(member: str, value: object) -> None:
    with pytest.raises(BadFile, match="manifest"):
        OpenSpec.from_json({**SPEC.to_json(), member: value})
    with pytest.raises(BadFile, match="manifest"):
        OpenSpec.from_json({name: one for name, one in SPEC.to_json().items() if name != member})


@pytest.mark.parametrize("document", [None, [], "open", 7])
def test_what_is_no_object_is_refused(document: object) -> None:
    with pytest.raises(BadFile, match="manifest"):
        OpenSpec.from_json(document)


UNIFORM = Initializer.parse("uniform")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"keys": "int32"}, "keys are int64, uint64 or string, not 'int32'; did you mean"),
    "no kind": ({"keys": ""}, "keys are int64, uint64 or string, not ''"),
    "cap of nothing": ({"rows_max": 0}, "rows_max is 0; it must be 1 to "),
    "cap": ({"rows_max": 2**40}, "rows_max is 1099511627776"),
    "ttl of nothing": ({"ttl_seconds": 0}, "ttl_seconds is 0"),
    "ttl": ({"ttl_seconds": 2**60}, "ttl_seconds is 1152921504606846976; it must be 1 to"),
    "admit": ({"admit_after": 0}, "admit_after is 0; it must be 1 to 255"),
    "on full": ({"on_full": "evict"}, "on_full is 'evict'; it can be error, evict-lru, evict-lfu"),
    "on missing": ({"on_missing": "zero"}, "on_missing is 'zero'; it can be error, create"),
    "touch": ({"touch_on_lookup": True, "on_full": "evict-lfu"}, "give a TTL too"),
    "whole table": (
        {"init": Initializer.parse("identity")},
        "identity draws the whole table at once",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_possible_is_named(name: str) -> None:
    given, why = REFUSED[name]
    with pytest.raises(InvalidArgument) as refused:
        open_spec(**{"keys": "string", "init": UNIFORM, **given})
    assert why in str(refused.value)


def test_options_have_defaults_and_a_seed_is_drawn() -> None:
    one, other = (open_spec(keys="string", init=UNIFORM) for _ in range(2))
    assert one.seed != other.seed
    assert replace(one, seed=3) == OpenSpec(KeyKind.BYTES, 100_000_000, 3, UNIFORM)


def test_an_open_table_begins_without_rows() -> None:
    spec = open_spec(keys="int64", init=UNIFORM, rows_max=2**40 - 2)
    with pytest.raises(InvalidArgument, match="rows is 5, but an open table begins without rows"):
        open_table("items", 5, 8, DType.FLOAT32, None, spec)
    with pytest.raises(InvalidArgument, match="dim is 0"):
        open_table("items", 0, 0, DType.FLOAT32, None, spec)
    assert open_table("items", 0, 64, DType.FLOAT32, None, spec).row_count == 0
