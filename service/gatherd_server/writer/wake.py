"""Wakes the one thread that waits for work."""

import threading


class Wake:
    """As a threading.Condition with one waiter, in less time: each push passes through here."""

    __slots__ = ("_lock", "_signal")

    def __init__(self, lock: threading.Lock) -> None:
        """Both sides hold `lock` when they call."""
        self._lock = lock
        self._signal = threading.Lock()
        self._signal.acquire()

    def wait(self, seconds: float = -1) -> bool:
        """Release the lock until `notify`, at most so many seconds; whether it came.

        It may have come before: the caller looks again whether there is work.
        """
        self._lock.release()
        try:
            return self._signal.acquire(timeout=seconds)
        finally:
            self._lock.acquire()

    def notify(self) -> None:
        """Wake the waiter, now or when it waits next."""
        if self._signal.locked():
            self._signal.release()
