"""Whose a remembered push is, and what a window written before that was known still does."""

import pytest

from gatherd.errors import RequestIdReused, RequestIdStale
from gatherd_server.storage.records import Record
from gatherd_server.types import OwnedKey, PushResult, RequestId, SessionSequence, owned_by
from gatherd_server.writer import window
from gatherd_server.writer.window import Window, request_id_from_json, request_id_to_json

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
