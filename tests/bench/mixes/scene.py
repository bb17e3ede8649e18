"""What the mixes are asked of: tables, the servers that have them, and Redis with the same rows.

26 tables of the same size are slices of one array, which is a table too (EVERYTHING): a row of
table k has an id there that is k × rows higher. Peers that know no tables are given such ids. The
first table's rows are there again in other dtypes, and under keys.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench import peers
from bench.harness import Call, Ids, Plan, process_tree
from bench.latency import ASLEEP, GRPC, HTTP
from bench.mixes.asks import EVERYTHING, STRINGS
from bench.peers import FLIGHT_EXCHANGE, FLOOR
from gatherd import Client
from gatherd.busy_poll import BUSY_POLL_US
from support.cli import invoke
from support.server import RunningServer

TABLE_COUNT: Final = 26
ROWS: Final = 50_000
HALF, BFLOAT, DOUBLE, TRAINED = "half", "bfloat", "double", "trained"
INTEGERS: Final = "integers"
NAMES: Final = tuple(f"t{k:02}" for k in range(TABLE_COUNT))
# Data dirs of other servers, by what those are for.
SLEEPING, LOADED, BEFORE = "asleep", "loaded", "before"
OTHERS: Final = (SLEEPING, LOADED, BEFORE)
# One in so many ids has no row, where some may be missing.
HOLES: Final = 16
_REDIS_KEYS: Final = 1000


@dataclass(frozen=True)
class Tables:
    """A data dir of all the tables, in `folder`; `rows` is each one's, but for EVERYTHING's."""

    folder: Path
    rows: int
    dim: int

    @classmethod
    def of(cls, plan: Plan) -> "Tables":
        """Those of a plan's size; not made yet."""
        return cls(plan.folder / "mixes", max(1000, min(ROWS, plan.rows // 10)), plan.dim)

    @property
    def data_dir(self) -> Path:
        """Where they are."""
        return self.folder / "data"

    @property
    def weights(self) -> Path:
        """The rows of EVERYTHING, which peers map."""
        return self.data_dir / "tables" / EVERYTHING / "v000001" / "weights.npy"

    @property
    def row_count(self) -> int:
        """Rows of EVERYTHING."""
        return TABLE_COUNT * self.rows

    @cached_property
    def everything(self) -> NDArray[np.float32]:
        """The rows of EVERYTHING, mapped."""
        mapped: NDArray[np.float32] = np.load(self.weights, mmap_mode="r")
        return mapped

    @cached_property
    def integer_keys(self) -> NDArray[np.int64]:
        """The first table's, of 64 bits, in no order."""
        return np.random.default_rng(5).permutation(self.rows) * np.int64(0x9E3779B97F4B) + 1

    @cached_property
    def string_keys(self) -> list[str]:
        """The first table's."""
        return [f"user:{number:08x}" for number in range(self.rows)]

    def make(self) -> None:
        """Make them, unless they are there."""
        if self.weights.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        source, integers, strings = (self.folder / name for name in ("s.npy", "i.npy", "s.txt"))
        np.save(integers, self.integer_keys)
        strings.write_text("\n".join(self.string_keys) + "\n")
        rng = np.random.default_rng(0)
        everything = rng.standard_normal((self.row_count, self.dim), np.float32)
        for k, name in enumerate(NAMES):
            np.save(source, everything[k * self.rows : (k + 1) * self.rows])
            self._import(name, source)
        np.save(source, everything[: self.rows])
        for name, dtype in ((HALF, "float16"), (BFLOAT, "bfloat16"), (DOUBLE, "float64")):
            self._import(name, source, "--dtype", dtype)
        self._import(TRAINED, source, "--optimizer", "sgd")
        self._import(INTEGERS, source, "--keys", integers)
        self._import(STRINGS, source, "--keys", strings)
        np.save(source, everything)
        self._import(EVERYTHING, source)
        source.unlink()
        for name in OTHERS:
            shutil.copytree(self.data_dir, self.linked(name), copy_function=_link_rows)

    def _import(self, name: str, source: Path, *options: str | Path) -> None:
        invoke("import", name, source, *options, "--data-dir", self.data_dir)

    def linked(self, name: str) -> Path:
        """A data dir for another server, with the same rows in memory; one of OTHERS."""
        return self.folder / name


def _link_rows(source: str, target: str) -> None:
    # Locks are on files: those that a server writes have to be each one's own.
    if Path(source).name == "weights.npy" and TRAINED not in Path(source).parts:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class Scene:
    """Everybody who is asked. `redis` and `flight` are None where they aren't installed."""

    plan: Plan
    tables: Tables
    clients: Mapping[str, Client]
    servers: Mapping[str, RunningServer]
    pids: Mapping[str, list[int]]
    floor: Call
    redis: Any | None = None
    redis_port: int = 0
    flight: Call | None = None
    skipped: list[str] = field(default_factory=list)

    def rng(self) -> np.random.Generator:
        """The same for everybody who draws."""
        return np.random.default_rng(11)

    def served_by(self, side: str) -> list[int]:
        """The processes that answer who is called so; see `Mix`."""
        return next((pids for name, pids in self.pids.items() if side.startswith(name)), [])


@contextmanager
def scene(plan: Plan) -> Iterator[Scene]:
    """Everybody, started and with the same rows."""
    tables = Tables.of(plan)
    tables.make()
    reasons = peers.missing()
    with ExitStack() as stack:
        log = plan.folder / "mixes.log"
        server = stack.enter_context(
            RunningServer("--data-dir", tables.data_dir, log_path=log),
        )
        asleep = stack.enter_context(
            RunningServer(
                "--data-dir", tables.linked(SLEEPING), "--busy-poll-us", "0", log_path=log
            )
        )
        urls = {HTTP: server.http, ASLEEP: asleep.http, GRPC: server.grpc}
        clients = {
            name: stack.enter_context(
                Client(url, busy_poll_us=0 if name == ASLEEP else BUSY_POLL_US, timeout=60)
            )
            for name, url in urls.items()
        }
        pids = {
            # Names begin with one another: the longer ones come first.
            ASLEEP: process_tree(asleep.process.pid),
            HTTP: process_tree(server.process.pid),
            GRPC: process_tree(server.process.pid),
        }
        kinds = [kind for kind in ("flight", "floor") if kind not in reasons]
        running = {kind: stack.enter_context(peers.serving(kind, tables.weights)) for kind in kinds}
        ports = {kind: peer.port for kind, peer in running.items()}
        calls = peers.calls(ports, tables.dim, stack)
        pids |= {"floor": [running["floor"].pid]}
        if "flight" in running:
            pids["Arrow"] = [running["flight"].pid]
        redis, port = None, 0
        if "redis" not in reasons:
            peer = stack.enter_context(peers.redis(plan.folder, "--appendonly", "no"))
            redis, port = peers.redis_client(peer.port, stack), peer.port
            _load_redis(tables, redis, port)
            pids["Redis"] = [peer.pid]
        yield Scene(
            plan=plan,
            tables=tables,
            clients=clients,
            servers={HTTP: server, ASLEEP: asleep},
            pids=pids,
            floor=calls[FLOOR],
            redis=redis,
            redis_port=port,
            flight=calls.get(FLIGHT_EXCHANGE),
            skipped=list(reasons.values()),
        )


def half_key(row: int) -> bytes:
    """Redis' key of a row of the first table in float16."""
    return b"h%d" % row


def integer_key(key: int) -> bytes:
    """Redis' key for an integer key."""
    return b"i%d" % key


def _load_redis(tables: Tables, client: Any, port: int) -> None:
    peers.load_rows(port, tables.everything)
    first = tables.everything[: tables.rows]
    half = first.astype(np.float16)
    name: Callable[[int], str | bytes]
    integers = tables.integer_keys.tolist()
    for rows, name in (
        (half, half_key),
        (first, lambda row: integer_key(integers[row])),
        (first, tables.string_keys.__getitem__),
    ):
        for start in range(0, tables.rows, _REDIS_KEYS):
            stop = min(tables.rows, start + _REDIS_KEYS)
            client.mset({name(row): rows[row].tobytes() for row in range(start, stop)})


def flat(tables: Tables, ids: Mapping[str, Ids]) -> Ids:
    """The ids in EVERYTHING of ids in NAMES."""
    return np.concatenate([k * tables.rows + ids[name] for k, name in enumerate(NAMES)])
