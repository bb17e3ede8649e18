"""Which pushes a window still knows, whose they are, and what an older window on the disk does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatherd.errors import GatherdError, RequestIdReused, RequestIdStale
from gatherd.store.keys import StringKeys
from gatherd.store.query import ByKey
from gatherd_server.storage.records import Record
from gatherd_server.types import (
    OwnedKey,
    Push,
    PushResult,
    RequestId,
    SessionSequence,
    TableUpdate,
    UpdateOp,
    owned_by,
)
from gatherd_server.writer import window
from gatherd_server.writer.window import (
    DIGEST_BYTES,
    SEQUENCES_MAX,
    Window,
    push_digest,
    request_id_from_json,
    request_id_to_json,
)

A, B = bytes(16), bytes(range(16))
FIRST, SECOND = PushResult(1, (1,)), PushResult(2, (1,))
SESSION = SessionSequence(b"s" * 16, 7)
IDS: list[RequestId] = ["step-7", SESSION]


def kept(before: Window) -> Window:
    """As it is after a restart."""
    return Window.from_record(Record(*before.to_record(), 0))


def kept_before_owners(of: Window) -> Window:
    """As a server wrote it that knew no owners."""
    directory, arrays = of.to_record()
    del directory["session_owners"], directory["key_owners"]
    return Window.from_record(Record(directory, arrays, 0))


@pytest.mark.parametrize("request_id", IDS, ids=str)
def test_an_id_of_another_token_is_another_id(request_id: RequestId) -> None:
    made = Window()
    mine, theirs = owned_by("mine", request_id), owned_by("theirs", request_id)
    made.add(mine, A, FIRST)
    for done in (made, kept(made)):
        assert done.find(mine, A) == FIRST
        with pytest.raises(RequestIdReused, match="belongs to another update"):
            done.find(mine, B)
        assert done.find(theirs, A) is None
        assert done.find(theirs, B) is None
        done.add(theirs, B, SECOND)
        assert (done.find(mine, A), done.find(theirs, B)) == (FIRST, SECOND)


@pytest.mark.parametrize("request_id", IDS, ids=str)
def test_what_was_remembered_without_a_token_is_answered_to_the_same_push(
    request_id: RequestId,
) -> None:
    made = Window()
    made.add(request_id, A, FIRST)
    done = kept_before_owners(made)
    assert done.find(request_id, A) == FIRST
    assert done.find(owned_by("any", request_id), A) == FIRST
    with pytest.raises(RequestIdReused):
        done.find(request_id, B)


def test_another_push_under_a_key_from_before_is_done() -> None:
    made = Window()
    made.add("step-7", A, FIRST)
    done = kept_before_owners(made)
    assert done.find(OwnedKey("step-7", "any"), B) is None


def test_a_session_from_before_goes_on_as_that_of_its_token() -> None:
    made = Window()
    for sequence in (4_000, 5_000):
        made.add(SessionSequence(b"s" * 16, sequence), A, FIRST)
    done = kept_before_owners(made)
    # As a new session, 5,001 would be too high to tell whether it was done.
    following = SessionSequence(b"s" * 16, 5_001, "trainer")
    assert done.find(following, B) is None
    done.add(following, B, SECOND)
    done = kept(done)
    assert done.find(SessionSequence(b"s" * 16, 5_000, "trainer"), A) == FIRST
    assert done.find(following, B) == SECOND
    with pytest.raises(RequestIdStale):
        done.find(SessionSequence(b"s" * 16, 5_001, "stranger"), B)


def test_who_draws_new_ids_all_the_time_forgets_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "SESSIONS_MAX", 8)
    monkeypatch.setattr(window, "KEYS_MAX", 8)
    done = Window()
    mine: list[RequestId] = [OwnedKey("step", "mine"), SessionSequence(b"m" * 16, 1, "mine")]
    for request_id in mine:
        done.add(request_id, A, FIRST)
    for number in range(100):
        done.add(OwnedKey(str(number), "flood"), B, SECOND)
        done.add(SessionSequence(number.to_bytes(16), 1, "flood"), B, SECOND)
    for request_id in mine:
        assert done.find(request_id, A) == FIRST
    assert done.find(OwnedKey("99", "flood"), B) == SECOND
    assert done.find(OwnedKey("0", "flood"), B) is None
    directory, _ = done.to_record()
    assert (len(directory["sessions"]), len(directory["keys"])) == (8, 8)


@pytest.mark.parametrize(
    "request_id", [None, "step", OwnedKey("step", "mine"), SESSION, owned_by("mine", SESSION)]
)
def test_ids_come_back_from_the_log_as_they_were(request_id: RequestId) -> None:
    assert request_id_from_json(request_id_to_json(request_id)) == request_id


def test_ids_without_an_owner_are_logged_as_they_always_were() -> None:
    assert request_id_to_json("step") == "step"
    assert request_id_to_json(SESSION) == [SESSION.session.hex(), 7]


SMALL = {"SEQUENCES_MAX": 4, "SESSIONS_MAX": 3, "KEYS_MAX": 3}
NAMES = "klmno"


@dataclass
class Model:
    """What a window is to know of one owner's pushes, as plainly as dicts can say it."""

    owner: str
    keys: dict[str, tuple[bytes, PushResult]] = field(default_factory=dict)
    sessions: dict[bytes, dict[int, tuple[bytes, PushResult]]] = field(default_factory=dict)

    def find(self, request_id: RequestId, digest: bytes) -> PushResult | type[GatherdError] | None:
        """The answer, the error's class, or None."""
        if isinstance(request_id, OwnedKey):
            done = self.keys.get(request_id.key)
        else:
            assert isinstance(request_id, SessionSequence)
            own = self.sessions.get(request_id.session)
            newest = max(own) if own else 0
            if request_id.sequence <= newest - SMALL["SEQUENCES_MAX"]:
                return RequestIdStale
            if own is None and request_id.sequence > SMALL["SEQUENCES_MAX"]:
                return RequestIdStale
            done = (own or {}).get(request_id.sequence)
        if done is None:
            return None
        return done[1] if done[0] == digest else RequestIdReused

    def add(self, request_id: RequestId, digest: bytes, result: PushResult) -> None:
        """As the newest."""
        if isinstance(request_id, OwnedKey):
            self.keys.pop(request_id.key, None)
            self.keys[request_id.key] = digest, result
            self.keys = dict(list(self.keys.items())[-SMALL["KEYS_MAX"] :])
        else:
            assert isinstance(request_id, SessionSequence)
            own = self.sessions.pop(request_id.session, {})
            own[request_id.sequence] = digest, result
            self.sessions[request_id.session] = own
            self.sessions = dict(list(self.sessions.items())[-SMALL["SESSIONS_MAX"] :])


def found(done: Window, request_id: RequestId, digest: bytes) -> object:
    """As Model.find says it."""
    try:
        return done.find(request_id, digest)
    except GatherdError as error:
        return type(error)


def ids_of(owner: str) -> list[RequestId]:
    """Every id that is asked for."""
    sessions = [name.encode() * 16 for name in NAMES]
    return [
        *(OwnedKey(name, owner) for name in NAMES),
        *(SessionSequence(session, n, owner) for session in sessions for n in range(1, 13)),
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in SMALL.items():
        monkeypatch.setattr(window, name, most)


@pytest.mark.usefixtures("small")
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    owner=st.sampled_from(["", "trainer"]),
    steps=st.lists(st.tuples(st.integers(0, 64), st.sampled_from([A, B]), st.booleans())),
)
def test_a_window_knows_what_its_bounds_leave_also_after_restarts(
    owner: str, steps: list[tuple[int, bytes, bool]]
) -> None:
    done, model, ids = Window(), Model(owner), ids_of(owner)
    for lsn, (which, digest, restarts) in enumerate(steps, 1):
        request_id, result = ids[which], PushResult(lsn, (1 + lsn % 3,))
        # As the writer does: what is known, stale or another's isn't done.
        if model.find(request_id, digest) is None:
            model.add(request_id, digest, result)
            done.add(request_id, digest, result)
        if restarts:
            done = kept(done)
        for asked in ids:
            assert found(done, asked, digest) == model.find(asked, digest)


@pytest.mark.usefixtures("small")
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(NAMES))))
def test_each_owner_keeps_its_newest_keys_and_those_with_few_keep_all(
    steps: list[tuple[str, str]],
) -> None:
    done = Window()
    put: dict[str, dict[str, int]] = {owner: {} for owner in "abc"}
    for lsn, (owner, key) in enumerate(steps, 1):
        put[owner].pop(key, None)
        put[owner][key] = lsn
        done.add(OwnedKey(key, owner), A, PushResult(lsn, (1,)))
    count = 0
    for owner, own in put.items():
        answers = [done.find(OwnedKey(key, owner), A) for key in own]
        known = [answer for answer in answers if answer is not None]
        # Forgotten are the oldest, and of an owner that has its share at most, none.
        assert answers == [None] * (len(own) - len(known)) + known
        assert [answer.lsn for answer in known] == list(own.values())[len(own) - len(known) :]
        assert len(known) >= min(len(own), SMALL["KEYS_MAX"] // len(put))
        count += len(known)
    assert count == min(sum(map(len, put.values())), SMALL["KEYS_MAX"])


def test_a_push_without_an_id_is_never_remembered() -> None:
    made = Window()
    made.add(None, A, FIRST)
    assert made.find(None, A) is None


def test_a_session_is_known_for_its_newest_sequences() -> None:
    made = Window()
    session = b"s" * 16
    for sequence in (1, SEQUENCES_MAX, SEQUENCES_MAX + 1):
        made.add(SessionSequence(session, sequence), A, PushResult(sequence, (1,)))
    for done in (made, kept(made)):
        with pytest.raises(RequestIdStale) as stale:
            done.find(SessionSequence(session, 1), A)
        assert stale.value.metadata == {"sequence": "1", "newest": str(SEQUENCES_MAX + 1)}
        # 2 was never pushed, and whoever sends it late is served.
        assert done.find(SessionSequence(session, 2), A) is None
        newest = done.find(SessionSequence(session, SEQUENCES_MAX + 1), A)
        assert newest == PushResult(SEQUENCES_MAX + 1, (1,))


def test_a_session_that_is_not_known_can_not_begin_above_its_window() -> None:
    made = Window()
    assert made.find(SessionSequence(b"n" * 16, SEQUENCES_MAX), A) is None
    with pytest.raises(RequestIdStale):
        made.find(SessionSequence(b"n" * 16, SEQUENCES_MAX + 1), A)


def test_a_retry_gets_the_counts_of_rows_too() -> None:
    """Of pushes of some tables and of many, beside others without any, and after a restart."""
    made, session, wide = Window(), b"s" * 16, tuple(range(20))
    results = [
        PushResult(1, (1,)),
        PushResult(2, (1,), (3,), (), (1,)),
        PushResult(3, wide, (), (*wide[:-1], 1 << 31)),
        PushResult(4, (1, 2), (0, 5), (7, 0)),
        PushResult(5, (1,)),
    ]
    ids: list[list[RequestId]] = [
        [OwnedKey(str(number), "any"), SessionSequence(session, number + 1)]
        for number in range(len(results))
    ]
    for pair, result in zip(ids, results, strict=True):
        for one in pair:
            made.add(one, A, result)
    made.add(SessionSequence(b"p" * 16, 1), A, FIRST)
    made.add(SessionSequence(b"q" * 16, 1), A, results[3])
    # The slot of sequence 2, whose push created rows.
    late = SessionSequence(session, SEQUENCES_MAX + 2)
    for done in (made, kept(made), kept(kept(made))):
        for pair, result in zip(ids, results, strict=True):
            assert [done.find(one, A) for one in pair] == [result, result]
        assert done.find(SessionSequence(b"p" * 16, 1), A) == FIRST
        assert done.find(SessionSequence(b"q" * 16, 1), A) == results[3]
        done.add(late, A, FIRST)
        assert done.find(late, A) == FIRST


def test_a_window_without_counts_of_rows_is_written_as_before_there_were_any() -> None:
    made = Window()
    made.add(SESSION, A, FIRST)
    made.add("step", A, SECOND)
    directory, arrays = made.to_record()
    assert [len(key) for key in directory["keys"]] == [4]
    assert (len(arrays), "widths" in directory) == (1, False)


def pushed(table: str = "items", ids: Any = (1, 2), **fields: Any) -> Push:
    asked = ids if isinstance(ids, ByKey) else np.array(ids)
    values = fields.pop("values", np.ones((2, 2), np.float32))
    op = fields.pop("op", UpdateOp.ASSIGN)
    return Push(op, (TableUpdate(table, asked, values, **fields),))


OTHERS: dict[str, Callable[[], Push]] = {
    "operation": lambda: pushed(op=UpdateOp.SCATTER_ADD),
    "table": lambda: pushed("users"),
    "ids": lambda: pushed(ids=(2, 1)),
    "keys": lambda: pushed(ids=ByKey(StringKeys.of([b"a", b"bc"]))),
    "keys split elsewhere": lambda: pushed(ids=ByKey(StringKeys.of([b"ab", b"c"]))),
    "values": lambda: pushed(values=np.full((2, 2), 2, np.float32)),
    "shape": lambda: pushed(ids=[[1, 2]], values=np.ones((1, 2, 2), np.float32)),
    "rate": lambda: pushed(lr=0.5),
    "version": lambda: pushed(if_version=3),
    "create": lambda: pushed(creates=True),
}


def test_a_digest_tells_pushes_apart_by_everything_in_them() -> None:
    digests = [push_digest(pushed()), *(push_digest(make()) for make in OTHERS.values())]
    assert {len(digest) for digest in digests} == {DIGEST_BYTES}
    assert len(set(digests)) == len(digests)


def test_a_digest_takes_neither_the_id_nor_the_ids_dtype_nor_the_trace() -> None:
    one = pushed()
    again = Push(one.op, one.updates, "key", "00-trace")
    narrow = pushed(ids=np.array([1, 2], np.int32))
    assert push_digest(one) == push_digest(again) == push_digest(narrow)
