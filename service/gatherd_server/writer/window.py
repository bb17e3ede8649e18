"""The pushes that were done, so that a retry gets the first answer instead of a second update.

The window is bounded. It keeps the newest SEQUENCES_MAX sequences of each session, the SESSIONS_MAX
sessions that were used last, and the newest KEYS_MAX idempotency keys. Within it a repeated push
gets its first answer, also after a restart: the window is in every frame of the log and in every
checkpoint. A sequence below the window is refused, because it is no longer known whether it was
done. So is a sequence above SEQUENCES_MAX of a session that isn't in the window.

Keys and sessions belong to the token that pushed (by its name; "" for pushes without a token). The
same key of another token is another key. When the window is full, the token with the most entries
loses its oldest, so nobody makes the server forget the others' pushes. Pushes remembered without a
token (at one time all of them) answer anyone who sends the very same push again. A session without
a token becomes that of the token that continues it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import RequestIdReused, RequestIdStale
from gatherd.store.keys import StringKeys
from gatherd.store.query import ByKey
from gatherd_server.storage.records import Record
from gatherd_server.types import OwnedKey, Push, PushResult, RequestId, SessionSequence

SEQUENCES_MAX = 1_024
SESSIONS_MAX = 4_096
KEYS_MAX = 100_000
DIGEST_BYTES = 16

_NO_COUNTS = np.zeros((0, 3), np.uint32)
_ENTRY = np.dtype(
    [("sequence", "<u8"), ("lsn", "<u8"), ("digest", "V16"), ("versions", "<u4")], align=False
)


def push_digest(push: Push) -> bytes:
    """Tells one push from another: DIGEST_BYTES of the SHA-256 of all its contents."""
    digest = hashlib.sha256(push.op.value.encode())
    for update in push.updates:
        asked = update.asked
        digest.update(
            repr((update.table, update.lr, update.if_version, update.values.shape)).encode()
        )
        if not isinstance(asked, ByKey):
            digest.update(np.ascontiguousarray(asked, "<i8").data)
        elif isinstance(asked.keys, StringKeys):
            digest.update(np.ascontiguousarray(asked.keys.offsets).data)
            digest.update(np.ascontiguousarray(asked.keys.data).data)
        else:
            digest.update(np.ascontiguousarray(asked.keys).data)
        digest.update(np.ascontiguousarray(update.values).data)
        if update.creates:
            digest.update(b"create")
    return digest.digest()[:DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class Done:
    """A push that was done."""

    digest: bytes
    result: PushResult


@dataclass(slots=True)
class _Session:
    """The kept pushes of one session, and its newest sequence.

    `counts`, uint32 (SEQUENCES_MAX, tables, 3), are PushResult.counts of the entries in the ring,
    with as many tables as the widest push that had some; None while none had.
    """

    ring: NDArray[Any]
    newest: int = 0
    counts: NDArray[np.uint32] | None = None

    def counts_at(self, slot: int, table_count: int) -> NDArray[np.uint32]:
        """The counts of the entry in a slot, (tables, 3); (0, 3) when it can't have any."""
        if self.counts is None:
            return _NO_COUNTS
        return self.counts[slot, :table_count]

    def put_counts(self, slot: int, counts: NDArray[np.uint32]) -> None:
        """Keep the counts, (tables, 3), of the entry in a slot."""
        if self.counts is None and not len(counts):
            return
        width = 0 if self.counts is None else self.counts.shape[1]
        if self.counts is None or width < len(counts):
            wider = np.zeros((SEQUENCES_MAX, len(counts), 3), np.uint32)
            if self.counts is not None:
                wider[:, :width] = self.counts
            self.counts = wider
        self.counts[slot] = 0
        self.counts[slot, : len(counts)] = counts


K = TypeVar("K")
V = TypeVar("V")


class _ByOwner(Generic[K, V]):
    """At most `most` values, each with an owner; an owner's oldest is dropped first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._owners: dict[str, OrderedDict[K, V]] = {}

    def get(self, owner: str, key: K) -> V | None:
        """The owner's value under `key`, if there is one."""
        own = self._owners.get(owner)
        return None if own is None else own.get(key)

    def put(self, owner: str, key: K, value: V) -> None:
        """Keep `value` as the owner's newest; if full, drop the oldest of the largest owner."""
        own = self._owners.setdefault(owner, OrderedDict())
        self._count += key not in own
        own[key] = value
        own.move_to_end(key)
        if self._count > self._most:
            largest = max(self._owners, key=lambda name: len(self._owners[name]))
            self.drop(largest, next(iter(self._owners[largest])))

    def drop(self, owner: str, key: K) -> None:
        """Forget one value, if it is kept."""
        own = self._owners.get(owner, OrderedDict())
        if own.pop(key, None) is not None:
            self._count -= 1
            if not own:
                del self._owners[owner]

    def items(self) -> Iterator[tuple[str, K, V]]:
        """Owner, key and value of all, each owner's oldest first."""
        for owner, own in self._owners.items():
            for key, value in own.items():
                yield owner, key, value


class Window:
    """The latest pushes that were done. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        # A session's entries form a ring, at sequence modulo SEQUENCES_MAX: at most 37 kB each, and
        # 12 kB a table for a session whose pushes create or remove rows.
        self._sessions: _ByOwner[bytes, _Session] = _ByOwner(SESSIONS_MAX)
        self._keys: _ByOwner[str, Done] = _ByOwner(KEYS_MAX)
        # Nearly all pushes have the same few versions; entries refer to them by number.
        self._versions: list[tuple[int, ...]] = []
        self._version_numbers: dict[tuple[int, ...], int] = {}

    def find(self, request_id: RequestId, digest: bytes) -> PushResult | None:
        """The answer that the push got, None when it is still to be done.

        RequestIdReused when the id belongs to another push, RequestIdStale when it is too old.
        """
        if request_id is None:
            return None
        if isinstance(request_id, SessionSequence):
            done = self._find_sequence(request_id)
        else:
            key, owner = _key_of(request_id)
            done = self._keys.get(owner, key)
            if done is None and owner:
                done = _if_same(self._keys.get("", key), digest)
        if done is None:
            return None
        if done.digest != digest:
            raise reused(request_id)
        return done.result

    def add(self, request_id: RequestId, digest: bytes, result: PushResult) -> None:
        """Remember that a push was done, and forget the entries that are now too old."""
        if isinstance(request_id, SessionSequence):
            self._add_sequence(request_id, digest, result)
        elif request_id is not None:
            key, owner = _key_of(request_id)
            self._keys.put(owner, key, Done(digest, result))

    def _session(self, request_id: SessionSequence) -> "_Session | None":
        found = self._sessions.get(request_id.owner, request_id.session)
        return found or self._sessions.get("", request_id.session)

    def _find_sequence(self, request_id: SessionSequence) -> Done | None:
        session, sequence = request_id.session, request_id.sequence
        known = self._session(request_id)
        newest = 0 if known is None else known.newest
        if (known is None and sequence > SEQUENCES_MAX) or sequence + SEQUENCES_MAX <= newest:
            raise RequestIdStale(
                f"sequence {sequence} of session {session.hex()} is too old to tell whether it was "
                f"done: {SEQUENCES_MAX} sequences of {SESSIONS_MAX} sessions are kept",
                {"sequence": str(sequence), "newest": str(newest)},
            )
        if known is None:
            return None
        entry = known.ring[sequence % SEQUENCES_MAX]
        if int(entry["sequence"]) != sequence:
            return None
        versions = self._versions[int(entry["versions"])]
        counts = known.counts_at(sequence % SEQUENCES_MAX, len(versions)).tolist()
        return Done(bytes(entry["digest"]), PushResult.of(int(entry["lsn"]), versions, counts))

    def _add_sequence(self, request_id: SessionSequence, digest: bytes, result: PushResult) -> None:
        owner, session, sequence = request_id.owner, request_id.session, request_id.sequence
        known = self._session(request_id)
        if known is None:
            known = _Session(np.zeros(SEQUENCES_MAX, _ENTRY))
        elif owner:
            self._sessions.drop("", session)
        self._sessions.put(owner, session, known)
        if sequence + SEQUENCES_MAX > known.newest:
            number = self._version_number(result.versions)
            known.ring[sequence % SEQUENCES_MAX] = (sequence, result.lsn, digest, number)
            known.put_counts(sequence % SEQUENCES_MAX, _counts_array(result))
        known.newest = max(sequence, known.newest)

    def _version_number(self, versions: tuple[int, ...]) -> int:
        number = self._version_numbers.get(versions)
        if number is None:
            number = self._version_numbers[versions] = len(self._versions)
            self._versions.append(versions)
        return number

    def to_record(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The directory and the arrays of a record that `from_record` reads.

        They hold every push that was done before this call, and may hold later ones.
        """
        sessions, counts, entries, owners = [], [], [np.zeros(0, _ENTRY)], []
        widths, results = [], [_NO_COUNTS.reshape(-1)]
        for owner, session, known in self._sessions.items():
            is_kept = known.ring["sequence"] > 0
            kept = known.ring[is_kept]
            sessions.append(session.hex())
            counts.append(len(kept))
            entries.append(kept)
            owners.append(owner)
            widths.append(0 if known.counts is None else known.counts.shape[1])
            if known.counts is not None:
                results.append(known.counts[is_kept].reshape(-1))
        keys, key_owners = [], []
        for owner, key, done in self._keys.items():
            number = self._version_number(done.result.versions)
            listed = [key, done.digest.hex(), done.result.lsn, number]
            keys.append([*listed, done.result.counts] if done.result.counts else listed)
            key_owners.append(owner)
        directory = {
            "sessions": sessions,
            "counts": counts,
            "session_owners": owners,
            "keys": keys,
            "key_owners": key_owners,
            "versions": self._versions,
        }
        flat = np.concatenate(entries)
        arrays = [flat.view(np.uint8).reshape(-1)]
        if any(widths):
            directory["widths"] = widths
            arrays.append(np.concatenate(results))
        return directory, arrays

    @classmethod
    def from_record(cls, record: Record) -> "Window":
        """The window that `to_record` recorded."""
        window = cls()
        directory = record.directory
        for some in directory["versions"]:
            window._version_number(tuple(map(int, some)))
        entries = record.arrays[0].copy().view(_ENTRY)
        position = begin = 0
        names, keys = directory["sessions"], directory["keys"]
        # Older records have no owners, and no counts of rows.
        owners = directory.get("session_owners") or [""] * len(names)
        widths = directory.get("widths") or [0] * len(names)
        results = record.arrays[1] if any(widths) else _NO_COUNTS
        listed = zip(names, directory["counts"], owners, widths, strict=True)
        for name, count, owner, width in listed:
            own = entries[position : position + count]
            known = _Session(np.zeros(SEQUENCES_MAX, _ENTRY), int(own["sequence"].max()))
            slots = own["sequence"] % SEQUENCES_MAX
            known.ring[slots] = own
            if width:
                end = begin + 3 * width * count
                known.counts = np.zeros((SEQUENCES_MAX, width, 3), np.uint32)
                known.counts[slots] = results[begin:end].reshape(count, width, 3)
                begin = end
            window._sessions.put(owner, bytes.fromhex(name), known)
            position += count
        key_owners = directory.get("key_owners") or [""] * len(keys)
        for (key, digest, lsn, number, *counts), owner in zip(keys, key_owners, strict=True):
            result = PushResult.of(lsn, window._versions[number], *counts)
            window._keys.put(owner, key, Done(bytes.fromhex(digest), result))
        return window


def _counts_array(result: PushResult) -> NDArray[np.uint32]:
    """PushResult.counts, (tables, 3), or (0, 3)."""
    return np.array(result.counts, np.uint32).reshape(-1, 3) if result.counts else _NO_COUNTS


def _key_of(request_id: OwnedKey | str) -> tuple[str, str]:
    """An idempotency key and its owner."""
    return (request_id, "") if isinstance(request_id, str) else (request_id.key, request_id.owner)


def _if_same(done: Done | None, digest: bytes) -> Done | None:
    return done if done is not None and done.digest == digest else None


def reused(request_id: RequestId) -> RequestIdReused:
    """The error for a push that has another push's id."""
    if isinstance(request_id, SessionSequence):
        named = f"sequence {request_id.sequence} of session {request_id.session.hex()}"
    else:
        named = f"idempotency key {_key_of(request_id or '')[0]!r}"
    return RequestIdReused(f"{named} belongs to another update; take a new one")


def request_id_to_json(request_id: RequestId) -> object:
    """A request id as the log and the link write it.

    Without an owner the form is that of older releases. A release that knows no owners reads a
    session with an owner as one without.
    """
    if isinstance(request_id, SessionSequence):
        listed = [request_id.session.hex(), request_id.sequence]
        return [*listed, request_id.owner] if request_id.owner else listed
    if isinstance(request_id, OwnedKey):
        return {"key": request_id.key, "owner": request_id.owner}
    return request_id


def request_id_from_json(value: Any) -> RequestId:
    """The request id that `request_id_to_json` gave."""
    if isinstance(value, list):
        session, sequence, *owner = value
        return SessionSequence(bytes.fromhex(session), int(sequence), *owner)
    if isinstance(value, dict):
        return OwnedKey(value["key"], value["owner"])
    return None if value is None else str(value)
