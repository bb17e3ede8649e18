"""How much of a stream is read ahead of its answers."""

import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from gatherd_server.rpc.streams import QUEUE_BYTES_MAX, QUEUE_MAX, RequestReader
from support.server import wait_until


class Sender:
    """A client that sends as fast as it is read, and how much of it was."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.read_bytes = 0
        self.given = threading.Semaphore(0)

    def __iter__(self) -> Iterator[bytes]:
        for size in self.sizes:
            self.read_bytes += size
            self.given.release()
            yield bytes(size)


@pytest.mark.parametrize("size", [100, QUEUE_BYTES_MAX // 8, 2 * QUEUE_BYTES_MAX])
def test_a_stream_is_read_ahead_by_so_many_bytes_and_answered_whole(size: int) -> None:
    sender = Sender([size] * 50)
    reader = RequestReader(iter(sender))
    reader.start()
    held = max(1, min(QUEUE_MAX, QUEUE_BYTES_MAX // size))
    # One more is read, and waits for room.
    for _ in range(held + 1):
        assert sender.given.acquire(timeout=10)
    assert not sender.given.acquire(timeout=0.2)
    assert sender.read_bytes == (held + 1) * size
    answered = list(reader)
    assert [len(body) for body in answered] == sender.sizes
    assert reader.has_ended


def test_a_stream_that_is_closed_while_it_waits_for_room_lets_go_of_its_thread() -> None:
    before = threading.active_count()
    reader = RequestReader(iter(Sender([QUEUE_BYTES_MAX] * 50)))
    reader.start()
    assert [len(body) for body in islice(reader, 1)] == [QUEUE_BYTES_MAX]
    reader.close()
    wait_until(lambda: threading.active_count() == before, "its thread has ended")
