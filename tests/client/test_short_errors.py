"""An error shows the caller's lines, not the SDK's, and says what may have been meant."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gatherd
from gatherd import AsyncClient, Client
from gatherd.errors import GatherdError, InvalidArgument

PACKAGE = Path(gatherd.__file__).parent

FAIL: dict[str, Callable[[Any], Any]] = {
    "an id": lambda client: client.lookup("words", [1, 5000]),
    "an id, in a kind of lookup that was made before": lambda client: [
        client.lookup("words", np.array([1, 2])),
        client.lookup("words", np.array([1, 3])),
        client.lookup("words", np.array([1, 5000])),
    ],
    "a key": lambda client: client.lookup("words", keys=["word1", "wrod2"]),
    "a table": lambda client: client.lookup("wrods", [1]),
    "a float": lambda client: client.lookup("words", [1.5]),
    "many": lambda client: client.lookup_many({"words": [1], "items": [99]}),
    "bags": lambda client: client.lookup_bags("words", [[1], [5000]]),
    "many bags": lambda client: client.lookup_bags_many({"words": [[5000]]}),
    "keys of": lambda client: client.keys_of("words", [5000]),
    "a push": lambda client: client.scatter_add("words", [1], [[np.nan]]),
    "a change": lambda client: client.create_table("new", 10, 4, dtype="float33"),
    "a description": lambda client: client.table("wrods"),
}


def sdk_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [one for one in frames if Path(one.filename).is_relative_to(PACKAGE)]


def test_an_error_has_one_frame_of_the_sdks(
    make: Any, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(server) as client:
        for what, fail in FAIL.items():
            with pytest.raises(GatherdError) as short:
                fail(client)
            assert len(sdk_frames(short.value)) == 1, what
            shown = "".join(traceback.format_exception(short.value))
            assert shown.count("Traceback") == 1, what
            assert "fail(client)" in shown, what
        monkeypatch.setenv("GATHERD_FULL_TRACEBACKS", "1")
        for what, fail in FAIL.items():
            with pytest.raises(GatherdError) as full:
                fail(client)
            assert len(sdk_frames(full.value)) > 2, what


@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_a_wrong_url_has_one_frame_too(cls: type[Client | AsyncClient]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        cls("htp://127.0.0.1:8000")
    assert len(sdk_frames(refused.value)) == 1


def test_what_the_caller_was_handling_is_still_shown(make: Any, server: str) -> None:
    def failing() -> None:
        try:
            dict[str, int]()["the caller's own"]
        except KeyError:
            client.lookup("words", np.array([5000]))

    with make(server) as client, pytest.raises(InvalidArgument) as failed:
        failing()
    shown = "".join(traceback.format_exception(failed.value))
    assert shown.count("Traceback") == 2
    assert "the caller's own" in shown


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda client: client.lookup("words", [1], missing="zeros"), "zero"),
        (lambda client: client.lookup("words", [1], dtype="flaot16"), "float16"),
        (lambda client: client.lookup_bags("words", [[1]], mode="average"), None),
        (lambda client: client.lookup_bags("words", [[1]], mode="maen"), "mean"),
        (lambda client: client.create_table("new", 3, 3, dtype="bfloat61"), "bfloat16"),
    ],
)
def test_a_misspelled_option_is_answered_with_the_one_that_was_meant(
    call: Callable[[Any], Any], meant: str | None
) -> None:
    # Nobody listens there: it is found out before anything is sent.
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidArgument) as refused:
        call(client)
    asked = f"; did you mean {meant!r}?"
    assert str(refused.value).endswith(asked) is (meant is not None)
    assert ("did you mean" in str(refused.value)) is (meant is not None)
