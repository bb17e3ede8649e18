"""Another tree of this repository, asked beside this one: its SDK, in a process of its own, and its
server, over the same rows.

A turn of it is a message: what to call, on which batches and for how long, and the times come back.
`python -m bench.mixes.elsewhere DATA_DIR LOG` is the process; it runs with the tree's modules first
on its path, and this tree's benchmark.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.harness import timed

TESTS = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Elsewhere:
    """The process."""

    process: "subprocess.Popen[bytes]"

    def asking(self, call: Callable[[Any, Any], object]) -> "CallElsewhere":
        """Something to time by turns."""
        return CallElsewhere(self, call)

    def times(self, call: Any, batches: Sequence[Any], seconds: float) -> list[float]:
        """µs of each call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        _send(self.process.stdin, (call, batches, seconds))
        answer: list[float] = pickle.load(self.process.stdout)
        return answer


@dataclass(frozen=True, slots=True)
class CallElsewhere:
    """A call that is made there; `harness.timed` asks it for its own times."""

    elsewhere: Elsewhere
    call: Callable[[Any, Any], object]

    def __call__(self, batch: Any) -> object:
        return self.timed([batch], 0)

    def timed(self, batches: Sequence[Any], seconds: float) -> list[float]:
        """µs of each call."""
        return self.elsewhere.times(self.call, batches, seconds)


@contextmanager
def elsewhere(tree: Path, data_dir: Path, log: Path) -> Iterator[Elsewhere]:
    """The SDK and the server of `tree`, on a data dir of their own."""
    path = [*(tree / name for name in ("client", "service", "proto")), TESTS]
    missing = [str(folder) for folder in path if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"{tree} is no tree of this repository: no {missing[0]}")
    with subprocess.Popen(
        [sys.executable, "-m", __spec__.name, data_dir, log],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    ) as process:
        yield Elsewhere(process)
        # Its input ends here, and so does it, after its server.
        assert process.stdin is not None
        process.stdin.close()


def _send(stream: IO[bytes], message: Any) -> None:
    pickle.dump(message, stream)
    stream.flush()


def main() -> None:
    """Serve, and time what is asked for until the input ends."""
    from gatherd import Client, tune_allocator
    from support.server import RunningServer

    tune_allocator()
    data_dir, log = map(Path, sys.argv[1:])
    with (
        RunningServer("--data-dir", data_dir, log_path=log) as server,
        Client(server.http, timeout=60) as client,
    ):
        while True:
            try:
                call, batches, seconds = pickle.load(sys.stdin.buffer)
            except EOFError:
                return

            def ask(batch: Any, call: Any = call) -> object:
                answer: object = call(client, batch)
                return answer

            _send(sys.stdout.buffer, timed(ask, batches, seconds))


if __name__ == "__main__":
    main()
