"""An exception at any instant leaves a client usable: Ctrl-C, a signal's handler, a cancellation.

CPython runs signal handlers at the end of a call, at the start of a function and at each turn of a
loop, not between any two instructions. Tracing has more steps: it would also raise between a `with`
block's last instruction and the call of its lock's `__exit__`, and as an `except` block ends,
before the thread's current exception is put back. No signal can; those steps are left out.
"""

import asyncio
import dis
import linecache
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import gatherd
from client.clients import ITEMS, WORDS
from client.fake_updates import UpdatedService
from client.fakes import connect_server, grpc_server
from gatherd import Batching, Client
from gatherd.transports import connect

OURS = str(Path(gatherd.__file__).parent)
STEPS_MAX = 20_000
CALLS: dict[str, Callable[[Any, int], Any]] = {
    "lookup": lambda client, row: client.lookup("words", np.array([row, 1])),
    "lookup of a list": lambda client, row: client.lookup("words", [row], missing="zero"),
    "lookup_many": lambda client, row: client.lookup_many({"words": [row], "items": [2]}),
    "push": lambda client, row: client.scatter_add("words", [3], np.zeros((1, 8), np.float32)),
}


class Interrupted(BaseException):
    """An exception that no code expects."""


class _Tracer:
    """Raises `Interrupted` at one of the steps of the client's code."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.raised = False

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "exception" or self.raised or _is_with(frame, event) or _ends_except(frame):
            return self
        self.left -= 1
        if self.left < 0:
            self.raised = True
            raise Interrupted
        return self


def _is_with(frame: FrameType, event: str) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return event == "line" and line.lstrip().startswith(("with self._lock", "with s"))


def _ends_except(frame: FrameType) -> bool:
    return frame.f_code.co_code[frame.f_lasti] == dis.opmap["POP_EXCEPT"]


def interrupted(call: Callable[[], Any], at: int) -> bool:
    """Make a call that is interrupted at its step `at`; False if it has fewer steps."""
    tracer = _Tracer(at)
    sys.settrace(tracer)
    try:
        call()
    except Interrupted:
        pass
    finally:
        sys.settrace(None)
    # Else every later exception of this thread would be shown with one that isn't its context.
    assert sys.exception() is None
    return tracer.raised


@pytest.fixture(autouse=True)
def one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call would miss a place that was lost."""
    monkeypatch.setattr(connect, "CONNECTIONS_MAX", 1)


@contextmanager
def serving(wire: str) -> Iterator[str]:
    service = UpdatedService({"words": WORDS.copy(), "items": ITEMS.copy()})
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "http": lambda: connect_server(service),
        "grpc": lambda: grpc_server(service),
    }
    with servers[wire]() as url:
        yield url


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("wire", ["http", "grpc"])
@pytest.mark.parametrize("batching", [None, Batching()], ids=["alone", "batched"])
def test_interrupted_at_each_step_the_next_call_is_answered_and_right(
    wire: str, name: str, batching: Batching | None
) -> None:
    if batching is not None and "lookup" not in name:
        pytest.skip("only lookups are merged")
    with serving(wire) as url, Client(url, batching=batching, timeout=5) as client:
        for _ in range(3):
            client.lookup("words", np.array([0, 1]))  # learns what replies look like
        for at in range(STEPS_MAX):
            row = at % 499
            if not interrupted(partial(CALLS[name], client, row), at):
                break
            other = np.array([row + 1, 2])
            np.testing.assert_array_equal(client.lookup("words", other), WORDS[other])
        assert 20 < at < STEPS_MAX - 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whoever_leads_a_merged_request_may_be_interrupted_and_the_others_are_answered() -> None:
    with serving("http") as url, Client(url, batching=Batching(), timeout=10) as client:
        stop, failures = threading.Event(), list[BaseException]()
        slowest = [0.0]

        def follow(row: int) -> None:
            try:
                while not stop.is_set():
                    begin = time.monotonic()
                    found = client.lookup("words", np.array([row]))
                    slowest[0] = max(slowest[0], time.monotonic() - begin)
                    np.testing.assert_array_equal(found, WORDS[[row]])
            except BaseException as error:  # noqa: BLE001 - given to the test's thread
                failures.append(error)

        threads = [threading.Thread(target=follow, args=(row,)) for row in range(3)]
        for thread in threads:
            thread.start()
        try:
            for at in range(400):
                interrupted(lambda: client.lookup("words", np.array([9])), at)
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
        assert not failures
        assert slowest[0] < 3  # no thread waited for the timeout


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_call_that_is_cancelled_at_any_turn_of_the_loop(wire: str) -> None:
    async def run(url: str) -> None:
        async with gatherd.AsyncClient(url, timeout=5) as client:
            for turns in range(12):
                for name in ("lookup", "lookup_many", "push"):
                    task = asyncio.ensure_future(CALLS[name](client, 4))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    found = await client.lookup("words", [turns, 7])
                    np.testing.assert_array_equal(found, WORDS[[turns, 7]])

    with serving(wire) as url:
        asyncio.run(run(url))


ALARMS = """
import random, signal, sys, time
import numpy as np
from gatherd import Batching, Client
from gatherd.transports import connect

class Alarm(BaseException):
    pass

def handler(*_):
    raise Alarm

connect.CONNECTIONS_MAX = 2
signal.signal(signal.SIGALRM, handler)
client = Client(sys.argv[1], timeout=5, batching=Batching() if sys.argv[2] == "batched" else None)
words = client.lookup("words", np.arange(500))
draw, ends_at, alarms, slowest = random.Random(3), time.monotonic() + 2, 0, 0.0
while time.monotonic() < ends_at:
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 2e-3))
        while True:
            client.lookup("words", np.array([5, 6]))
            client.lookup_many({"words": [1], "items": [2]})
    except Alarm:
        alarms += 1
    rows = np.array([alarms % 499, 3])
    begin = time.monotonic()
    assert (client.lookup("words", rows) == words[rows]).all()
    slowest = max(slowest, time.monotonic() - begin)
assert alarms > 50, alarms
assert slowest < 2, slowest
print(alarms, slowest)
"""


@pytest.mark.parametrize("batched", ["alone", "batched"])
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_alarms_at_random_instants(wire: str, batched: str) -> None:
    with serving(wire) as url:
        done = subprocess.run(
            [sys.executable, "-c", ALARMS, url, batched], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
