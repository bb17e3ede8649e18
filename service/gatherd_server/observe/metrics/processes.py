"""The kernel's counters of the server's processes: page faults, processor time, memory.

The process that answers a scrape reads them for all processes: nothing has to be published.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gatherd_server.observe.metrics.exposition import Sample
from gatherd_server.observe.metrics.names import (
    PROCESS_CPU,
    PROCESS_MAJOR_FAULTS,
    PROCESS_MEMORY,
    PROCESS_MINOR_FAULTS,
    PROCESS_START,
)

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# The positions of fields in /proc/PID/stat, counted from the state, which follows the name.
_MINOR, _MAJOR, _USER, _SYSTEM, _START, _RESIDENT = 7, 9, 11, 12, 19, 21


def process_samples(pids: Mapping[str, int]) -> Iterator[Sample]:
    """The samples of every process that exists, with its name."""
    try:
        booted = _boot_time()
    except OSError:
        booted = 0
    for name, pid in pids.items():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue  # it has just ended
        fields = stat.rpartition(")")[2].split()
        cpu = (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS
        labels = (name,)
        yield Sample(PROCESS_MINOR_FAULTS, labels, int(fields[_MINOR]))
        yield Sample(PROCESS_MAJOR_FAULTS, labels, int(fields[_MAJOR]))
        yield Sample(PROCESS_CPU, labels, cpu)
        yield Sample(PROCESS_MEMORY, labels, int(fields[_RESIDENT]) * _PAGE_BYTES)
        yield Sample(PROCESS_START, labels, booted + int(fields[_START]) / _TICKS)


def _boot_time() -> int:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return 0
