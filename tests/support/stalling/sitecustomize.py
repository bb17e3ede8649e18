"""A disk that stalls, for a process with this folder in PYTHONPATH.

fdatasync doesn't return while the file named by STALL_FILE exists.
"""

import os
import time
from pathlib import Path
from unittest import mock

_sync = os.fdatasync
_gate = Path(os.environ.get("STALL_FILE", "/nonexistent"))


def _stalled(fd: int) -> None:
    while _gate.exists():
        time.sleep(0.01)
    _sync(fd)


mock.patch.object(os, "fdatasync", _stalled).start()
