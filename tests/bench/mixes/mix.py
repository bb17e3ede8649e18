"""A mix: one kind of request, and everybody who is asked it in turns."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import Table, Timing, interleave, number
from bench.mixes.elsewhere import Elsewhere
from bench.mixes.scene import Scene
from bench.peers import REDIS

Array = NDArray[Any]
Call = Callable[[Any], object]
ClientCall = Callable[[Any, Any], object]
"""A client and a batch to an answer. It goes to other processes, so it can be pickled."""

BEFORE = "gatherd http://, before"


@dataclass(frozen=True, slots=True)
class Ask:
    """A call of the SDK and what it has to answer; `expected` None where a mix's is meant."""

    call: ClientCall
    expected: Callable[[Any], Array] | None = None
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Mget:
    """Redis' MGET: a batch to the keys of its rows, and their values to an answer."""

    keys: Callable[[Any], Sequence[Any]]
    answer: Callable[[Any], object]

    def of(self, client: Any) -> Call:
        """As a call of redis-py's blocking client."""
        return lambda batch: self.answer(client.mget(self.keys(batch)))


@dataclass(frozen=True, slots=True)
class Mix:
    """One kind of request: `batches` of it, asked of gatherd over each wire, and of peers.

    `asks` has gatherd's variants, by what is added to the wire's name; "" is the usual one. What
    somebody is called begins with what serves them; see `Scene.served_by`. `others` has what peers
    answer whose answer isn't the usual one.
    """

    name: str
    batches: Sequence[Any]
    expected: Callable[[Any], Array]
    asks: Mapping[str, Ask]
    mget: Mget
    peers: Mapping[str, Call] = field(default_factory=dict)
    others: Mapping[str, Ask] = field(default_factory=dict)


def side(wire: str, variant: str) -> str:
    """How a variant over a wire is called."""
    return f"{wire}, {variant}" if variant else wire


def measure(scene: Scene, mix: Mix, elsewhere: Elsewhere | None) -> dict[str, Timing]:
    """Everybody's timing, by how they are called, once all have answered the same."""
    calls: dict[str, Call] = {}
    for wire, client in scene.clients.items():
        for variant, ask in mix.asks.items():
            calls[side(wire, variant)] = functools.partial(ask.call, client)
            _check(f"{mix.name}, {side(wire, variant)}", calls[side(wire, variant)], ask, mix)
    peers = dict(mix.peers)
    if scene.redis is not None:
        peers[REDIS] = mix.mget.of(scene.redis)
    for name, call in peers.items():
        calls[name] = call
        _check(f"{mix.name}, {name}", call, mix.others.get(name, mix.asks[""]), mix)
    if elsewhere is not None:
        calls |= {side(BEFORE, v): elsewhere.asking(ask.call) for v, ask in mix.asks.items()}
    pids = {name: scene.served_by(name) for name in calls if not name.startswith(BEFORE)}
    return interleave(calls, mix.batches, scene.plan, pids)


def vectors(answer: Any) -> Array:
    """All that an answer has, in a row: of many tables, with statuses at the end."""
    if isinstance(answer, dict):
        return np.concatenate([vectors(one) for one in answer.values()])
    if isinstance(answer, tuple):
        return np.concatenate([np.asarray(part).ravel() for part in answer])
    return np.asarray(answer).ravel()


def _check(who: str, call: Call, ask: Ask, mix: Mix) -> None:
    """An answer that isn't right isn't worth its time."""
    for batch in (mix.batches[0], mix.batches[-1]):
        wanted = (ask.expected or mix.expected)(batch).ravel()
        answer = vectors(call(batch))
        same = answer.shape == wanted.shape
        if not same or not np.allclose(answer, wanted, rtol=ask.tolerance, atol=ask.tolerance):
            raise AssertionError(f"{who}: the answer isn't what NumPy says")


def table(title: str, measured: Mapping[str, Mapping[str, Timing]], beside: str) -> Table:
    """A row for each who was asked each mix; `beside` is who the last column compares with."""
    whom = beside.partition(", redis-py")[0]
    header = ("request", "asked", "p50, µs", "p99, µs", "CPU here", "CPU served", f"× {whom}")
    rows = []
    for mix, timings in measured.items():
        rival = timings[beside].p50 if beside in timings else None
        for name, one in timings.items():
            # Of another process only its times are told.
            told = not name.startswith(BEFORE)
            cpu = [number(x) if told else "" for x in (one.client_cpu, one.server_cpu)]
            ahead = "" if rival is None else number(rival / one.p50)
            rows.append((mix, name, number(one.p50), number(one.p99), *cpu, ahead))
    return Table(title, header, tuple(rows), labels=2)
