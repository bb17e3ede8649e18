"""What a caller is held to, whatever the wire."""

from pathlib import Path

import pytest

from gatherd.errors import Overloaded, PermissionDenied
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Caller, Grant, GuardedEngine, Limiter, Scope
from gatherd_server.access.token_file import TokenFile
from gatherd_server.engine.engine import Engine
from security.conftest import make_token
from support.small_engine import LIMITS

# The writer has a version prepared; the compiled answer holds a caller against each table itself,
# and tells of the lookups that it has answered.
OWN = {"prepare_version", "view", "note_superseded"}


def test_every_question_to_an_engine_is_guarded() -> None:
    asked = {name for name in vars(Engine) if not name.startswith("_")} - OWN
    assert asked <= set(vars(GuardedEngine))


def test_a_token_has_as_many_requests_under_way_as_it_is_for(tmp_path: Path) -> None:
    token = make_token(
        tmp_path / "tokens", "two", "--scope", "read", "--table", "*", "--concurrency", "2"
    )
    admission = Admission(LIMITS, TokenFile(tmp_path / "tokens"))
    caller = admission.caller([b"Bearer " + token.encode()])
    admission.enter(caller)
    with admission.request(caller):
        with pytest.raises(Overloaded, match="2 requests under way") as full:
            admission.enter(caller)
        assert full.value.retry_after_seconds
        assert admission.in_flight == 2
    admission.enter(caller)
    admission.leave(caller)
    admission.leave(caller)
    assert admission.in_flight == 0


def test_a_rate_is_a_seconds_worth_at_once_and_then_grows_with_time() -> None:
    now = 100.0
    limiter = Limiter(Grant("a", frozenset(), (), rate=4.0), clock=lambda: now)
    for _ in range(4):
        limiter.count()
    with pytest.raises(Overloaded) as full:
        limiter.count()
    assert full.value.retry_after_seconds == pytest.approx(0.25)
    now += 0.5
    limiter.count()
    limiter.count()
    with pytest.raises(Overloaded):
        limiter.count()
    now += 1e6
    for _ in range(4):
        limiter.count()
    with pytest.raises(Overloaded):
        limiter.count()


@pytest.mark.parametrize(
    ("pattern", "table", "is_reached"),
    [
        ("items", "items", True),
        ("items", "items2", False),
        ("items*", "items", True),
        ("items*", "my-items", False),
        ("*-v?", "a.b-v1", True),
        ("*-v?", "a-v12", False),
        ("a.b", "aXb", False),
        ("*", "anything\nat all", True),
    ],
)
def test_patterns(pattern: str, table: str, is_reached: bool) -> None:
    caller = Caller(Grant("a", frozenset((Scope.READ,)), (pattern,)))
    for _ in range(2):
        assert caller.reaches(table) is is_reached
    if not is_reached:
        with pytest.raises(PermissionDenied):
            caller.check_table(table)
