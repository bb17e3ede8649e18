"""What a client's pushes are called, so that a server does each of them once.

Each process has a session of its own: after a fork the child draws one, for two processes that
count on in the same session would take each other's pushes for retries.
"""

import os
import threading

from gatherd._wire.updates import SessionSequence
from gatherd.store.limits import SESSION_BYTES


class _Session:
    """One process's; its lock is never one that a fork left locked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        self.name = os.urandom(SESSION_BYTES)
        self.sequence = 0


class RequestIds:
    """Numbers a client's pushes. Safe to use from many threads."""

    def __init__(self) -> None:
        # By process: a dict's setdefault needs no lock.
        self._sessions: dict[int, _Session] = {}

    def draw(self) -> SessionSequence:
        """The id of a push that wasn't sent yet."""
        session = self._session()
        with session.lock:
            session.sequence += 1
            return SessionSequence(session.name, session.sequence)

    def draw_anew(self, stale: SessionSequence) -> SessionSequence:
        """As `draw`, in another session than that of `stale`, which the server has forgotten."""
        session = self._session()
        with session.lock:
            if session.name == stale.session:  # else another thread was here before
                session.begin()
        return self.draw()

    def _session(self) -> _Session:
        pid = os.getpid()
        session = self._sessions.get(pid)
        if session is None:
            session = self._sessions.setdefault(pid, _Session())
            for other in [other for other in self._sessions if other != pid]:
                self._sessions.pop(other, None)
        return session
