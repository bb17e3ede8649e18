"""How the rows of open tables come and go, table by table: key counts, eviction, expiry.

A checkpoint's first record has, beside the window, the member "key_counts": [[uid, version, newer,
counted], …], and an array of each, the last ones of the record; see `KeyCounts.to_state`. A version
that begins, also as a copy of another, counts anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.initial import hashes_of
from gatherd.store.keys import Keys
from gatherd.store.open_spec import OnFull
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.records import Record
from gatherd_server.writer.eviction import Eviction
from gatherd_server.writer.expiry import Expiry
from gatherd_server.writer.key_counts import KeyCounts

Key = tuple[str, int]
"""Uid and version."""


class Policy:
    """What one open version does with new keys, when it is full, and with old rows."""

    def __init__(self, version: OpenVersion, key_counts: KeyCounts | None) -> None:
        spec = version.spec
        self.key_counts = key_counts
        self.eviction: Eviction | None = None
        """None when a full table takes no new rows."""
        self.expiry: Expiry | None = None
        """None without a TTL."""
        self._version = version
        self._seed = spec.seed
        if spec.on_full is not OnFull.ERROR:
            by_count = spec.on_full is OnFull.EVICT_LFU
            self.eviction = Eviction(version.keys.stamps, version.counts, by_count=by_count)
        if spec.ttl_seconds:
            self.expiry = Expiry(version.keys.stamps, spec.ttl_seconds)

    def begin(self) -> "PolicyBatch":
        """The policy during a batch, which changes nothing unless it is `stored`."""
        return PolicyBatch(self, self._version, self._seed)

    def stored(self, counted: NDArray[np.uint64], created: NDArray[np.int64]) -> None:
        """A batch was logged and stored: the hashes that it counted, and the rows it created."""
        if self.key_counts is not None:
            self.key_counts.count(counted)
        if self.eviction is not None:
            self.eviction.created(created)


class PolicyBatch:
    """The policy of one open version during one batch."""

    def __init__(self, policy: Policy, version: OpenVersion, seed: int) -> None:
        self._policy = policy
        self._version = version
        self._seed = seed
        self._counts = None if policy.key_counts is None else policy.key_counts.begin()
        if policy.eviction is not None:
            policy.eviction.begin()

    @property
    def evicts(self) -> bool:
        """Whether rows make room for others."""
        return self._policy.eviction is not None

    @property
    def counted(self) -> NDArray[np.uint64]:
        """The hashes of the keys that were pushed and not admitted."""
        parts = [] if self._counts is None else self._counts.counted
        return np.concatenate([np.empty(0, np.uint64), *parts])

    @property
    def admits_at_once(self) -> bool:
        """Whether every key gets its row at its first push."""
        return self._counts is None

    def admitted(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of `keys`, (n,), each once, get a row by this push; the others are counted."""
        if self._counts is None:
            return np.ones(keys.size, np.bool_)
        return self._counts.admitted(hashes_of(keys, self._seed))

    def pin(self, rows: NDArray[np.int64]) -> None:
        """Rows that the batch changes aren't evicted by it."""
        if self._policy.eviction is not None:
            self._policy.eviction.pin(rows)

    def victims(self, count: int) -> NDArray[np.int64]:
        """The `count` rows to evict, or as many as there are that the batch doesn't change."""
        assert self._policy.eviction is not None
        return self._policy.eviction.take(count, self._version.space.used_rows)

    def stored(self, created: NDArray[np.int64]) -> None:
        """The batch was logged and stored; it created these rows."""
        self._policy.stored(self.counted, created)


class Policies:
    """The policies of a data dir's open versions, each made when it is needed. One thread's."""

    def __init__(
        self, states: "Mapping[Key, tuple[list[int], NDArray[Any]]] | None" = None
    ) -> None:
        """`states` are of the last checkpoint; see `read_states`."""
        self._states = dict(states or {})
        self._policies: dict[Key, Policy] = {}

    def of(self, key: Key, version: OpenVersion) -> Policy:
        """The policy of a version that is mapped."""
        found = self._policies.get(key)
        if found is None:
            found = self._policies[key] = Policy(version, self._key_counts(key, version))
        return found

    def _key_counts(self, key: Key, version: OpenVersion) -> KeyCounts | None:
        spec = version.spec
        if spec.admit_after <= 1:
            return None
        state = self._states.pop(key, None)
        if state is None:
            return KeyCounts(spec.admit_after, spec.rows_max)
        try:
            return KeyCounts.restored(spec.admit_after, spec.rows_max, *state)
        except ValueError as error:
            raise BadFile(f"the checkpoint is damaged: {error}") from None

    def forget(self, key: Key) -> None:
        """The version is gone."""
        self._policies.pop(key, None)
        self._states.pop(key, None)

    def to_record(self) -> tuple[list[list[object]], list[NDArray[Any]]]:
        """The member "key_counts" of a checkpoint, and its arrays."""
        states = dict(self._states)
        for key, policy in self._policies.items():
            if policy.key_counts is not None:
                states[key] = policy.key_counts.to_state()
        listed: list[list[object]] = [[*key, *numbers] for key, (numbers, _) in states.items()]
        return listed, [cells for _, cells in states.values()]


def read_states(record: Record) -> dict[Key, tuple[list[int], NDArray[Any]]]:
    """What `to_record` wrote into a checkpoint. ValueError or the like when it is damaged."""
    listed: Sequence[Any] = record.directory.get("key_counts") or []
    arrays = record.arrays[len(record.arrays) - len(listed) :]
    return {
        (str(uid), int(version)): ([int(newer), int(counted)], cells)
        for (uid, version, newer, counted), cells in zip(listed, arrays, strict=True)
    }
