"""The queue of pushes, and which of them are committed together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from gatherd_server.types import Push, PushResult, RequestId, WriterLimits
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.window import reused

# The next commit may wait for more pushes for this part of the last one's time.
GATHER_PART = 0.25


@dataclass(slots=True, eq=False)
class Waiting:
    """A push in the queue, and the futures of everybody who waits for its answer."""

    submitted: Submitted
    byte_count: int
    futures: "list[Future[PushResult]]"


class PushQueue:
    """First in, first out. Callers hold the writer's lock, which is also `wake`'s."""

    def __init__(self, limits: WriterLimits, wake: threading.Condition) -> None:
        """`wake` is notified when the committer has something to do."""
        self._limits = limits
        self._wake = wake
        self._queue: deque[Waiting] = deque()
        # Includes the pushes of the current batch, until they are answered.
        self._by_id: dict[RequestId, Waiting] = {}
        self._commit_seconds = 0.0
        self._expected = 1
        self.byte_count = 0
        """Bytes of all waiting pushes."""

    def __len__(self) -> int:
        """How many pushes wait."""
        return len(self._queue)

    def join(self, request_id: RequestId, digest: bytes, future: "Future[PushResult]") -> bool:
        """Answer `future` too when the pending push of this id is answered; False if there is none.

        RequestIdReused when the id belongs to another push.
        """
        waiting = self._by_id.get(request_id) if request_id is not None else None
        if waiting is None:
            return False
        if waiting.submitted.digest != digest:
            raise reused(request_id)
        waiting.futures.append(future)
        return True

    def has_room(self, byte_count: int) -> bool:
        """Whether a push of `byte_count` bytes may wait. It always may if no other does."""
        limits = self._limits
        return len(self._queue) < limits.queued_pushes_max and (
            not self._queue or self.byte_count + byte_count <= limits.queued_bytes_max
        )

    def add(self, push: Push, digest: bytes, byte_count: int, future: "Future[PushResult]") -> None:
        """Append a push, and wake the committer."""
        waiting = Waiting(Submitted(push, digest), byte_count, [future])
        if push.request_id is not None:
            self._by_id[push.request_id] = waiting
        self._queue.append(waiting)
        self.byte_count += byte_count
        self._wake.notify()

    def gather(self, has_more_to_do: Callable[[], bool]) -> None:
        """Wait a little longer: the clients just answered will probably push again.

        Otherwise pushers fall into two halves that commit in turns. The wait is bounded by a part
        of one commit's time, so that it never costs more than it can win. It ends at once if there
        is only one pusher, or the committer `has_more_to_do`.
        """
        deadline = time.monotonic() + GATHER_PART * self._commit_seconds
        while len(self._queue) < self._expected and not has_more_to_do():
            left = deadline - time.monotonic()
            if left <= 0 or not self._wake.wait(left):
                return

    def take_batch(self) -> list[Waiting]:
        """Remove and return the pushes to commit next."""
        batch: list[Waiting] = []
        byte_count = 0
        while self._queue and len(batch) < self._limits.batch_pushes_max:
            byte_count += self._queue[0].byte_count
            if batch and byte_count > self._limits.batch_bytes_max:
                break
            batch.append(self._queue.popleft())
            self.byte_count -= batch[-1].byte_count
        return batch

    def settle(self, batch: Sequence[Waiting], seconds: float) -> None:
        """Note that a batch will now be answered, and how long its commit took."""
        self._commit_seconds = seconds
        self._expected = len(batch) + len(self._queue)
        for waiting in batch:
            self._by_id.pop(waiting.submitted.push.request_id, None)
