"""The ids of a client's pushes, by which a server does each of them once.

Each process has a session of its own, and after a fork the child draws one: otherwise parent and
child would reuse sequence numbers, and the server would take one's push for a retry of the other's.
"""

import os
import threading

from gatherd._wire.updates import SessionSequence
from gatherd.store.limits import SESSION_BYTES


class _Session:
    """One process's session, and so with a lock that no fork can leave locked."""

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
        """The id of a new push."""
        session = self._session()
        with session.lock:
            session.sequence += 1
            return SessionSequence(session.name, session.sequence)

    def draw_anew(self, stale: SessionSequence) -> SessionSequence:
        """As `draw`, in another session than that of `stale`, which the server has forgotten."""
        session = self._session()
        with session.lock:
            if session.name == stale.session:  # else another thread began one already
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
