import pytest

from gatherd.errors import InternalError, MalformedRequest, Overloaded
from gatherd_server.http.errors import CONNECT_STATUS, connect_error, problem, rest_status
from gatherd_server.wire.codes import CODES
from support.error_classes import ERROR_CLASSES


def test_every_error_class_has_its_own_code() -> None:
    assert [cls for cls in ERROR_CLASSES if cls not in CODES] == []


def test_every_code_is_one_of_connects() -> None:
    assert set(CODES.values()) <= set(CONNECT_STATUS)


def test_a_new_leaf_takes_the_status_of_its_parent() -> None:
    class Leaf(MalformedRequest):
        pass

    assert problem(Leaf("x")).status_code == rest_status(MalformedRequest) == 400
    assert connect_error(Leaf("x")).body == connect_error(MalformedRequest("x")).body


@pytest.mark.parametrize(("seconds", "header"), [(None, "1"), (0.2, "1"), (3.5, "4")])
def test_retry_after_is_whole_seconds(seconds: float | None, header: str) -> None:
    error = Overloaded("full", retry_after_seconds=seconds)
    assert problem(error).headers["retry-after"] == header


def test_a_message_that_quotes_a_body_is_cut() -> None:
    body = problem(InternalError("x\ud800" * 100_000, {"a": "y" * 100_000})).body
    assert len(bytes(body)) < 20_000
