"""Feeds every decoder what has befallen its valid inputs, for a bounded time: `make fuzz`.

    FUZZ_SECONDS=120 python tests/fuzz/fuzz.py [NAME…]

Targets share the seconds, and a process until one ends it. One fails when it raises anything but
the documented errors, gives a wrong result, takes longer than HANG_SECONDS for one input, grows by
more than GROWTH_BYTES_MAX, or dies. What fails is printed as bytes, as small as hypothesis can make
them, to be put into test_found.py. FUZZ_SEED makes a run the same again; else each is another.
"""

import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz import answers, files, http_server, log, wires
from fuzz.mutations import mutated
from fuzz.target import Target

HANG_SECONDS = 20.0
GROWTH_BYTES_MAX = 256 << 20
# What one allocation may ask for beyond what the process has: more is a lying length believed.
ROOM_BYTES = 2 << 30
EXAMPLES = 400
BEGIN = "begin "
# To start, and to make what fails small; also for one that waits without working.
START_SECONDS = 300.0


@contextmanager
def all_targets(folder: Path) -> Iterator[list[Target]]:
    """Every target, with what they need."""
    found = []
    with ExitStack() as stack:
        for module in (answers, wires, log, files, http_server):
            own = folder / module.__name__.rpartition(".")[2]
            own.mkdir()
            found += stack.enter_context(module.targets(own))
        yield found


def run_batch(target: Target, number: int, examples: int = EXAMPLES) -> int:
    """Feed `examples` inputs drawn from `number`; how many went in. Raises what the target does."""
    fed = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(mutated(target.seeds))
    def feed(data: bytes) -> None:
        nonlocal fed
        fed += 1
        # Of processor time: a machine that stands still is no hang.
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            target.check(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    feed()
    return fed


def resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory() -> None:
    """An allocation of more than ROOM_BYTES fails from here on, which fails the target."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run_one(target: Target, seconds: float, number: int) -> bool:
    """Fuzz one target in this process; whether nothing was found. Raises what it does."""
    for data in target.seeds:
        target.check(data)
    run_batch(target, number, 50)
    before = resident_bytes()
    begun, fed = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        number += 1
        fed += run_batch(target, number)
    grown = resident_bytes() - before
    rate = fed / (time.monotonic() - begun)
    print(f"{target.name:40} {fed:8} inputs {rate:8.0f}/s {grown / 1e6:6.1f} MB more", flush=True)
    return grown <= GROWTH_BYTES_MAX


def run_some(names: list[str], seconds: float, number: int) -> int:
    """Fuzz targets in this process, `seconds` each; 1 when any failed."""
    faulthandler.enable()
    # Shows where it hangs, and then ends the process, as the signal does.
    faulthandler.register(signal.SIGPROF, chain=True)
    failed = False
    with (
        tempfile.TemporaryDirectory(dir=shared_memory()) as folder,
        all_targets(Path(folder)) as found,
    ):
        limit_memory()
        targets = {target.name: target for target in found}
        for name in names:
            print(BEGIN + name, flush=True)
            try:
                is_sound = run_one(targets[name], seconds, number)
            except BaseException:  # noqa: BLE001 - whatever it raises is what was found
                traceback.print_exc()
                is_sound = False
            failed = failed or not is_sound
            if not is_sound:
                print(f"{name}: FAILED", flush=True)
    return 1 if failed else 0


def shared_memory() -> str | None:
    """Where files cost no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    """Every target, one after the other; 1 when any failed."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "120"))
    number = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    with tempfile.TemporaryDirectory() as folder, all_targets(Path(folder)) as found:
        names = [target.name for target in found]
    chosen = [name for name in names if not sys.argv[1:] or any(a in name for a in sys.argv[1:])]
    print(f"{len(chosen)} decoders, {seconds:g} s in all, FUZZ_SEED={number}", flush=True)
    share = seconds / len(chosen)
    failed: set[str] = set()
    while chosen:
        chosen = _run_process(chosen, share, number, failed)
    print(f"{len(failed)} failed" + "".join(f"\n  {name}" for name in sorted(failed)))
    return 1 if failed else 0


def _run_process(names: list[str], share: float, number: int, failed: set[str]) -> list[str]:
    """Fuzz in a process of its own; those that are left when it died, and `failed` has why."""
    command = [sys.executable, __file__, "--some", json.dumps(names), str(share), str(number)]
    begun = ""
    seconds_max = START_SECONDS + 2 * share * len(names)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        watchdog = threading.Timer(seconds_max, child.kill)
        watchdog.start()
        for line in child.stdout:
            if line.startswith(BEGIN):
                begun = line.removeprefix(BEGIN).rstrip("\n")
            else:
                print(line, end="", flush=True)
            if line.endswith(": FAILED\n"):
                failed.add(line.removesuffix(": FAILED\n"))
        status = child.wait()
        watchdog.cancel()
    if status in (0, 1) and begun == names[-1]:
        return []
    name = begun or names[0]
    failed.add(name)
    print(f"{name}: FAILED, the process ended with status {status}", flush=True)
    return names[names.index(name) + 1 :]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--some"]:
        sys.exit(run_some(json.loads(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
    sys.exit(main())
