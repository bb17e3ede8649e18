"""Pushes by rows: each on the disk before it is answered, or only in memory; and Redis' writes.

A push adds to rows, or takes a step of their optimizer; Redis has neither, and replaces them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import peers
from bench.harness import Call, IdSource, Timing, interleave, process_tree
from bench.latency import ASLEEP, GRPC, HTTP
from bench.mixes.lookups import counted
from bench.mixes.scene import Scene
from bench.updates import (
    push,
    push_server,
    redis_servers,
    redis_set,
)
from gatherd import Client
from gatherd.busy_poll import BUSY_POLL_US

SIZES = (1, 64, 1024)
DURABILITIES = {"fsync": "durable", "os": "no sync"}
ADD, STEP = "scatter_add", "apply_gradients"


def name(size: int) -> str:
    """A mix's name."""
    return f"push of {counted(size, 'row')}"


def side(wire: str, method: str, durability: str) -> str:
    """How a push over a wire is called."""
    return f"{wire}, {method}, {DURABILITIES[durability]}"


def measure(scene: Scene) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Each size's name and timings."""
    rows = min(scene.tables.row_count, 200_000)
    with _calls(scene, rows) as (calls, pids):
        source = IdSource(rows, seed=7)
        for size in SIZES:
            batches = source.batches("uniform", size)
            yield name(size), interleave(calls, batches, scene.plan, pids)


@contextmanager
def _calls(scene: Scene, rows: int) -> Iterator[tuple[dict[str, Call], dict[str, list[int]]]]:
    """Everybody's push, and the processes that take it."""
    calls: dict[str, Call] = {}
    pids: dict[str, list[int]] = {}
    dim = scene.tables.dim
    with ExitStack() as stack:
        # On a disk: syncing a file in memory costs nothing.
        folder = Path(stack.enter_context(TemporaryDirectory(dir=scene.plan.disk)))
        for durability in DURABILITIES:
            awake = push_server(folder, durability, rows, dim, stack)
            asleep = push_server(folder, durability, rows, dim, stack, "--busy-poll-us", "0")
            for wire, url, server in (
                (HTTP, awake.http, awake),
                (ASLEEP, asleep.http, asleep),
                (GRPC, awake.grpc, awake),
            ):
                polled = 0 if wire == ASLEEP else BUSY_POLL_US
                client = stack.enter_context(Client(url, busy_poll_us=polled, timeout=60))
                methods: dict[str, Callable[..., object]] = {
                    ADD: client.scatter_add,
                    STEP: client.apply_gradients,
                }
                for method, function in methods.items():
                    who = side(wire, method, durability)
                    calls[who] = push(function, dim)
                    pids[who] = process_tree(server.process.pid)
        if scene.redis is not None:
            for who, peer in redis_servers(folder, stack).items():
                client_of = peers.redis_client(peer.port, stack)
                sets = who.replace("MSET", "pipeline of SETs")
                calls[who] = redis_set(client_of, dim)
                calls[sets] = redis_set(client_of, dim, pipelined=True)
                pids[who] = pids[sets] = [peer.pid]
        yield calls, pids
