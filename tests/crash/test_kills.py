"""SIGKILL of workers, the writer and everything, while clients push: nothing is lost or doubled.

`make test-crash` does it many times (CRASH_KILLS), `make test` a few.
"""

import os
import time
from pathlib import Path

import pytest

from crash.siege import Siege
from crash.verdict import verdict

KILLS = int(os.environ.get("CRASH_KILLS", "20"))
SEED = int(os.environ.get("CRASH_SEED", "1"))
# Most of them where the writer is a process of its own: there it can be killed alone.
SHARE = {1: 0.3, 2: 0.7}


@pytest.mark.timeout(120 + 6 * KILLS)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_acknowledged_push_is_done_once_whoever_is_killed(
    workers: int, tmp_path: Path
) -> None:
    siege = Siege(tmp_path, workers, SEED)
    began = time.monotonic()
    siege.run(round(KILLS * SHARE[workers]))
    ended = time.monotonic()
    found = verdict(siege)
    print(
        f"\n{workers} workers: {siege.kills.total()} kills in {ended - began:.0f} s "
        f"{dict(siege.kills)}; {found}; replayed in {time.monotonic() - ended:.0f} s"
    )
    log = siege.server_log.read_text()
    assert " CRITICAL " not in log
    assert "unexpected error" not in log
    assert found.acknowledged > 20 * siege.kills.total()
