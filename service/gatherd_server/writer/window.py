"""Which pushes were done: what makes a retry get the first answer instead of a second update.

The window is bounded. Of each session it keeps the newest SEQUENCES_MAX sequences, of sessions the
SESSIONS_MAX that were used last, of idempotency keys the newest KEYS_MAX. Inside, a push that comes
again gets its first answer, also after a restart: the window is in every frame of the log and in
every checkpoint. A sequence below the window is refused, for nobody can tell any more whether it
was done; so is one above SEQUENCES_MAX of a session that isn't known, or no longer.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import RequestIdReused, RequestIdStale
from gatherd.store.keys import StringKeys
from gatherd.store.query import ByKey
from gatherd_server.storage.records import Record
from gatherd_server.types import Push, PushResult, RequestId, SessionSequence

SEQUENCES_MAX = 1_024
SESSIONS_MAX = 4_096
KEYS_MAX = 100_000
DIGEST_BYTES = 16
SESSION_BYTES = 16

_ENTRY = np.dtype(
    [("sequence", "<u8"), ("lsn", "<u8"), ("digest", "V16"), ("versions", "<u4")], align=False
)


def push_digest(push: Push) -> bytes:
    """What tells one push from another: DIGEST_BYTES of the SHA-256 of everything in it."""
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
    return digest.digest()[:DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class Done:
    """A push that was done."""

    digest: bytes
    result: PushResult


class Window:
    """The pushes that were done lately. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        # A session's entries lie in a ring, sequence modulo SEQUENCES_MAX: 37 kB at most each.
        self._sessions: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._newest: dict[bytes, int] = {}
        self._keys: OrderedDict[str, Done] = OrderedDict()
        # Nearly all pushes have the same few versions; entries refer to them by number.
        self._versions: list[tuple[int, ...]] = []
        self._version_numbers: dict[tuple[int, ...], int] = {}

    def find(self, request_id: RequestId, digest: bytes) -> PushResult | None:
        """The answer that the push was given, None when it is to be done.

        RequestIdReused when the id is another push's, RequestIdStale when nobody knows any more.
        """
        if request_id is None:
            return None
        if isinstance(request_id, str):
            done = self._keys.get(request_id)
        else:
            done = self._find_sequence(request_id)
        if done is None:
            return None
        if done.digest != digest:
            raise reused(request_id)
        return done.result

    def add(self, request_id: RequestId, digest: bytes, result: PushResult) -> None:
        """Remember that a push was done, and forget what then is too old."""
        if isinstance(request_id, str):
            self._keys[request_id] = Done(digest, result)
            if len(self._keys) > KEYS_MAX:
                self._keys.popitem(last=False)
        elif request_id is not None:
            self._add_sequence(request_id, digest, result)

    def _find_sequence(self, request_id: SessionSequence) -> Done | None:
        session, sequence = request_id.session, request_id.sequence
        ring = self._sessions.get(session)
        newest = self._newest.get(session, 0)
        if (ring is None and sequence > SEQUENCES_MAX) or sequence + SEQUENCES_MAX <= newest:
            raise RequestIdStale(
                f"sequence {sequence} of session {session.hex()} is too old to tell whether it was "
                f"done: {SEQUENCES_MAX} sequences of {SESSIONS_MAX} sessions are kept",
                {"sequence": str(sequence), "newest": str(newest)},
            )
        if ring is None:
            return None
        entry = ring[sequence % SEQUENCES_MAX]
        if int(entry["sequence"]) != sequence:
            return None
        result = PushResult(int(entry["lsn"]), self._versions[int(entry["versions"])])
        return Done(bytes(entry["digest"]), result)

    def _add_sequence(self, request_id: SessionSequence, digest: bytes, result: PushResult) -> None:
        session, sequence = request_id.session, request_id.sequence
        ring = self._sessions.get(session)
        if ring is None:
            ring = self._sessions[session] = np.zeros(SEQUENCES_MAX, _ENTRY)
            if len(self._sessions) > SESSIONS_MAX:
                forgotten, _ = self._sessions.popitem(last=False)
                del self._newest[forgotten]
        self._sessions.move_to_end(session)
        if sequence + SEQUENCES_MAX > self._newest.get(session, 0):
            number = self._version_number(result.versions)
            ring[sequence % SEQUENCES_MAX] = (sequence, result.lsn, digest, number)
        self._newest[session] = max(sequence, self._newest.get(session, 0))

    def _version_number(self, versions: tuple[int, ...]) -> int:
        number = self._version_numbers.get(versions)
        if number is None:
            number = self._version_numbers[versions] = len(self._versions)
            self._versions.append(versions)
        return number

    def to_record(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The directory and the arrays of a record that `from_record` reads.

        They hold every push that was done when this was begun, and may hold later ones.
        """
        sessions, counts, entries = [], [], [np.zeros(0, _ENTRY)]
        for session, ring in self._sessions.items():
            kept = ring[ring["sequence"] > 0]
            sessions.append(session.hex())
            counts.append(len(kept))
            entries.append(kept)
        keys = [
            [key, done.digest.hex(), done.result.lsn, self._version_number(done.result.versions)]
            for key, done in self._keys.items()
        ]
        directory = {
            "sessions": sessions,
            "counts": counts,
            "keys": keys,
            "versions": self._versions,
        }
        flat = np.concatenate(entries)
        return directory, [flat.view(np.uint8).reshape(-1)]

    @classmethod
    def from_record(cls, record: Record) -> "Window":
        """What `to_record` gave."""
        window = cls()
        directory = record.directory
        for some in directory["versions"]:
            window._version_number(tuple(map(int, some)))
        entries = record.arrays[0].copy().view(_ENTRY)
        position = 0
        for name, count in zip(directory["sessions"], directory["counts"], strict=True):
            session, own = bytes.fromhex(name), entries[position : position + count]
            ring = window._sessions[session] = np.zeros(SEQUENCES_MAX, _ENTRY)
            ring[own["sequence"] % SEQUENCES_MAX] = own
            window._newest[session] = int(own["sequence"].max())
            position += count
        for key, digest, lsn, number in directory["keys"]:
            result = PushResult(lsn, window._versions[number])
            window._keys[key] = Done(bytes.fromhex(digest), result)
        return window


def reused(request_id: RequestId) -> RequestIdReused:
    """The error for a push that has another push's id."""
    if isinstance(request_id, SessionSequence):
        named = f"sequence {request_id.sequence} of session {request_id.session.hex()}"
    else:
        named = f"idempotency key {request_id!r}"
    return RequestIdReused(f"{named} belongs to another update; take a new one")


def request_id_to_json(request_id: RequestId) -> object:
    """A request id as the log and the link have it."""
    if isinstance(request_id, SessionSequence):
        return [request_id.session.hex(), request_id.sequence]
    return request_id


def request_id_from_json(value: Any) -> RequestId:
    """What `request_id_to_json` gave."""
    if isinstance(value, list):
        return SessionSequence(bytes.fromhex(value[0]), int(value[1]))
    return None if value is None else str(value)
