"""Whether a siege left what it had to, and nothing else.

Every client's log, the update log as it was found after each kill of everything, every snapshot and
every file are held against the oracle.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.oracle import Acknowledged, Switched, placed
from crash.siege import Siege, applied_lsn
from crash.workload import TABLES, Way, drawn_push, key_of
from gatherd_server.snapshots.snapshot import read_snapshot, verify_snapshot
from gatherd_server.writer.checkpoint import read_checkpoint
from gatherd_server.writer.window import push_digest


@dataclass(frozen=True, slots=True)
class Verdict:
    """How much was held against the oracle, and is as it has to be."""

    acknowledged: int
    repeated: int
    refused: int
    abandoned: int
    abandoned_done: int
    switches: int
    unanswered_switches: int
    snapshots: int
    versions: int


def verdict(siege: Siege) -> Verdict:
    """AssertionError unless every acknowledged push was done once, and nothing else was.

    One that was given up without an answer was done whole, with an LSN of its own, or not at all.
    """
    told = _read_outcomes(siege.outcomes())
    found = _find_abandoned(siege.data_dir, told.abandoned)
    by_lsn = {done.lsn: done for done in (*told.acknowledged.values(), *found)}
    assert len(by_lsn) == len(told.acknowledged) + len(found), "two pushes have the same LSN"
    switches = siege.switcher.switches
    last_lsn = applied_lsn(siege.data_dir)
    unknown = set(range(siege.first_lsn + 1, last_lsn + 1)) - set(by_lsn)
    unknown -= {switched.lsn for switched in switches if switched.lsn is not None}
    assert max(by_lsn) <= last_lsn
    events: list[tuple[int, Acknowledged | Switched]] = [*by_lsn.items()]
    events += placed(switches, unknown)
    for lsn, request_id in siege.logged.items():
        assert lsn in by_lsn, f"the log has {request_id} as LSN {lsn}, which nobody was told of"
        if isinstance(request_id, str):
            assert request_id == key_of(by_lsn[lsn].number), lsn
    snapshots = _replay(siege, sorted(events, key=lambda event: event[0]))
    versions = siege.oracle.check(siege.data_dir, "at the end")
    return Verdict(
        acknowledged=len(told.acknowledged),
        repeated=told.repeated,
        refused=told.refused,
        abandoned=len(told.abandoned),
        abandoned_done=len(found),
        switches=len(switches),
        unanswered_switches=sum(switched.lsn is None for switched in switches),
        snapshots=snapshots,
        versions=versions,
    )


@dataclass(slots=True)
class _Told:
    """What the clients were told of their pushes."""

    acknowledged: dict[int, Acknowledged] = field(default_factory=dict)
    repeated: int = 0
    refused: int = 0
    abandoned: list[int] = field(default_factory=list)


def _read_outcomes(lines: list[list[Any]]) -> _Told:
    outcomes = _Told()
    for number, lsn, told in lines:
        way = drawn_push(number).way
        if lsn is None and told is None:
            assert way is Way.ABANDONED, f"push {number} ended without an answer"
            outcomes.abandoned.append(number)
            continue
        assert (way is Way.REFUSED) == (lsn is None), f"push {number}: {told}"
        if lsn is None:
            outcomes.refused += 1
            continue
        done = Acknowledged(number, lsn, told)
        first = outcomes.acknowledged.setdefault(number, done)
        assert first == done, f"push {number} was answered {first}, and then {done}"
        outcomes.repeated += first is not done
    return outcomes


def _find_abandoned(data_dir: Path, numbers: list[int]) -> list[Acknowledged]:
    """Those that were done, by the window of the checkpoint that a stop in good order leaves."""
    window = read_checkpoint(data_dir).window
    found = []
    for number in numbers:
        push = drawn_push(number).as_the_server_has_it(key_of(number))
        done = window.find(push.request_id, push_digest(push))
        if done is not None:
            names = (update.table for update in push.updates)
            versions = dict(zip(names, done.versions, strict=True))
            found.append(Acknowledged(number, done.lsn, versions))
    return found


def _replay(siege: Siege, events: list[tuple[int, Acknowledged | Switched]]) -> int:
    """Do everything in the order of the LSNs; snapshots are checked at theirs. How many."""
    oracle = siege.oracle
    live = {table.name: 1 for table in TABLES}
    waiting = sorted(siege.switcher.snapshots, key=lambda taken: taken[1], reverse=True)
    count = len(waiting)

    def check_snapshots(before_lsn: float) -> None:
        while waiting and waiting[-1][1] < before_lsn:
            folder, lsn = waiting.pop()
            assert read_snapshot(folder).lsn == lsn
            for _ in verify_snapshot(folder):
                pass
            oracle.check(folder, f"snapshot {folder.name} at LSN {lsn}")

    for lsn, event in events:
        check_snapshots(lsn)
        if isinstance(event, Switched):
            assert live[event.table] == event.before, event
            oracle.switch(event)
            live[event.table] = event.after
            continue
        bound = {table: live[table] for table in event.versions}
        assert bound == event.versions, f"{event} went to other versions than the live {bound}"
        oracle.push(event)
    check_snapshots(float("inf"))
    return count
