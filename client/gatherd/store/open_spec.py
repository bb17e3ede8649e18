"""What an open table is created with: one that has keys only, grows by pushes, and forgets.

It is the member "open" of the version's manifest:

    {"keys": "int64", "uint64" or "bytes", "rows_max", "seed", "init": see initializer.py,
     "on_missing": "error" or "create", "admit_after", "on_full": "error", "evict-lru" or
     "evict-lfu", "ttl_seconds": 0 for none, "touch_on_lookup"}
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, Self, TypeAlias

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind

ROWS_MAX_DEFAULT: Final = 100_000_000
ROWS_MAX_MOST: Final = 2**40 - 2
"""The index has 40 bits for a row's number plus one, and all ones for a slot that is free again."""
SEED_MAX: Final = 2**64 - 1
ADMIT_AFTER_MAX: Final = 255
"""The sketch that counts pushes has a byte a cell."""
TTL_SECONDS_MAX: Final = 100 * 366 * 86_400

KeyKindName: TypeAlias = Literal["int64", "uint64", "string"]
OnFullName: TypeAlias = Literal["error", "evict-lru", "evict-lfu"]
OnMissingName: TypeAlias = Literal["error", "create"]

KEY_KINDS: Final = {
    "int64": KeyKind.INT64,
    "uint64": KeyKind.UINT64,
    "string": KeyKind.BYTES,
    "bytes": KeyKind.BYTES,
}
"""The kinds of keys by the names that a request may give them."""


class OnFull(Enum):
    """What a push does that needs a row when the table has `rows_max`."""

    ERROR = "error"
    EVICT_LRU = "evict-lru"
    """Remove the rows that were pushed least recently."""
    EVICT_LFU = "evict-lfu"
    """Remove the rows that were pushed least often; of those, the least recent."""


class OnMissing(Enum):
    """What a push by a key without a row does that doesn't say `create`."""

    ERROR = "error"
    CREATE = "create"


@dataclass(frozen=True, slots=True)
class OpenSpec:
    """How an open table's rows come and go; `checked` says whether the values are possible.

    `init` and `seed` give every key its initial vector. `creates`: a push creates rows without
    being asked to. `admit_after`: at a key's so-manieth push it gets a row. `ttl_seconds`: a row
    that wasn't pushed for so long is removed, 0 for never; with `touch_on_lookup` lookups count.
    """

    kind: KeyKind
    rows_max: int
    seed: int
    init: Initializer
    creates: bool = False
    admit_after: int = 1
    on_full: OnFull = OnFull.ERROR
    ttl_seconds: int = 0
    touch_on_lookup: bool = False

    def checked(self) -> Self:
        """This, if every value is possible; else InvalidArgument, naming the value."""
        self.init.check_by_row()
        _check_range("rows_max", self.rows_max, 1, ROWS_MAX_MOST)
        _check_range("seed", self.seed, 0, SEED_MAX)
        _check_range("admit_after", self.admit_after, 1, ADMIT_AFTER_MAX)
        if self.ttl_seconds:
            _check_range("ttl_seconds", self.ttl_seconds, 1, TTL_SECONDS_MAX)
        if self.touch_on_lookup and not (self.ttl_seconds or self.on_full is OnFull.EVICT_LRU):
            raise InvalidArgument(
                "touch_on_lookup says which rows are in use, but nothing asks: give a TTL too, or "
                "on_full evict-lru"
            )
        return self

    @property
    def keys(self) -> KeyKindName:
        """Its kind of keys, as a request names it: "int64", "uint64" or "string"."""
        match self.kind:
            case KeyKind.BYTES:
                return "string"
            case KeyKind.INT64:
                return "int64"
            case KeyKind.UINT64:
                return "uint64"

    @property
    def on_missing(self) -> OnMissingName:
        """`creates`, as a request names it: "create" or "error"."""
        return "create" if self.creates else "error"

    def described(self) -> dict[str, Any]:
        """It as callers see it, by the names of a request's options; None for no TTL."""
        return {**self.to_json(), "keys": self.keys, "ttl_seconds": self.ttl_seconds or None}

    def to_json(self) -> dict[str, Any]:
        """Its member of a manifest."""
        return {
            "keys": self.kind.value,
            "rows_max": self.rows_max,
            "seed": self.seed,
            "init": self.init.to_json(),
            "on_missing": self.on_missing,
            "admit_after": self.admit_after,
            "on_full": self.on_full.value,
            "ttl_seconds": self.ttl_seconds,
            "touch_on_lookup": self.touch_on_lookup,
        }

    @classmethod
    def from_json(cls, document: object) -> Self:
        """What `to_json` wrote; BadFile if it didn't write `document`."""
        try:
            return cls._read(document).checked()
        except InvalidArgument as error:
            raise BadFile(f"the manifest's open can't be used: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"the manifest's open is damaged: {error!r}") from None

    @classmethod
    def _read(cls, document: Any) -> Self:
        counts = [document[name] for name in ("rows_max", "seed", "admit_after", "ttl_seconds")]
        if not all(isinstance(one, int) for one in counts):
            raise TypeError(f"numbers are {counts}")
        rows_max, seed, admit_after, ttl_seconds = counts
        return cls(
            KeyKind(document["keys"]),
            rows_max,
            seed,
            Initializer.from_json(document["init"]),
            OnMissing(document["on_missing"]) is OnMissing.CREATE,
            admit_after,
            OnFull(document["on_full"]),
            ttl_seconds,
            document["touch_on_lookup"] is True,
        )


def parse_key_kind(name: str) -> KeyKind:
    """The kind of keys called `name`; InvalidArgument for any other name."""
    kind = KEY_KINDS.get(name)
    if kind is None:
        known = ("int64", "uint64", "string")
        raise InvalidArgument(
            f"keys are {', '.join(known[:-1])} or {known[-1]}, not {name!r}"
            f"{did_you_mean(near(name, known, 1))}"
        )
    return kind


def parse_on_full(name: str) -> OnFull:
    """The policy called `name`; InvalidArgument for any other name."""
    return OnFull(_known("on_full", name, [one.value for one in OnFull]))


def parse_on_missing(name: str) -> OnMissing:
    """The policy called `name`; InvalidArgument for any other name."""
    return OnMissing(_known("on_missing", name, [one.value for one in OnMissing]))


def _known(option: str, name: str, known: list[str]) -> str:
    if name not in known:
        hint = did_you_mean(near(name, known, 1))
        raise InvalidArgument(f"{option} is {name!r}; it can be {', '.join(known)}{hint}")
    return name


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgument(f"{name} is {value}; it must be {least} to {most}")
