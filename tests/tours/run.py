"""Four users' first hours with gatherd, as it is installed: `make test-tours` runs this.

A wheel is built and installed with the server's locked dependencies into a fresh environment, with
nothing else but what these users have anyway. Each script beside this file runs there, in an empty
folder: `tests/tours/run.py nlp` runs one of them. They can be read as documentation.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from support.next_steps import messages

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
TOURS = ("model_server", "nlp", "recommender", "platform_operator")
# What these users have in their notebooks, in the releases of the peers' lock.
USERS = ("pandas", "polars", "polars-runtime-32", "safetensors")
TOUR_SECONDS = 240
PIP = ("-m", "pip", "--disable-pip-version-check", "-q")


def main() -> None:
    """Build, install, run; the exit status is 1 when a tour stumbles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tours", nargs="*", metavar="TOUR", help=f"of {', '.join(TOURS)}")
    parser.add_argument("--python", help="of an environment that has gatherd already")
    given = parser.parse_args()
    if unknown := set(given.tours) - set(TOURS):
        parser.error(f"no tour {unknown.pop()!r}; there are {', '.join(TOURS)}")
    with tempfile.TemporaryDirectory(prefix="tours-") as made:
        folder = Path(made)
        python = given.python or installed(folder)
        with timed("kernels compiled, once"):
            run([python, "-m", "gatherd_server", "kernels"], environment(folder))
        with ThreadPoolExecutor(2) as users:
            stumbled = [
                report
                for report in users.map(
                    lambda tour: report_of(tour, python, folder), given.tours or TOURS
                )
                if report
            ]
    found = list(messages())
    named = sum(one.has_next_step for one in found)
    print(f"of the {len(found)} error messages in the source, {named} name the next step")
    if stumbled:
        sys.exit("\n".join(stumbled))


def installed(folder: Path) -> str:
    """The Python of a fresh environment with the wheel of this checkout."""
    with timed("wheel built"):
        run(
            [sys.executable, *PIP, "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder]
        )
    [wheel] = folder.glob("*.whl")
    constraints = folder / "constraints.txt"
    pins = (ROOT / "requirements-peers.lock").read_text().splitlines()
    constraints.write_text("\n".join(pin for pin in pins if pin.partition("==")[0] in USERS))
    python = str(folder / "venv" / "bin" / "python")
    with timed(f"{wheel.name} installed in a fresh environment"):
        run([sys.executable, "-m", "venv", folder / "venv"])
        lock = ROOT / "requirements-server.lock"
        run([python, *PIP, "install", "--require-hashes", "-r", lock])
        run([python, *PIP, "install", "-c", constraints, "pandas", "polars", "safetensors"])
        run([python, *PIP, "install", "--no-deps", wheel])
    return python


def report_of(tour: str, python: str, folder: Path) -> str:
    """Run one tour in a folder of its own; print what it did, and return how it stumbled, or ""."""
    here = folder / tour
    here.mkdir()
    started = time.monotonic()
    done = subprocess.run(
        [python, TESTS / "tours" / f"{tour}.py"],
        cwd=here,
        env={**environment(folder), "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=TOUR_SECONDS,
    )
    if done.returncode:
        return f"{tour}: {done.stdout}{done.stderr}"
    did = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{tour}: {did['commands']} commands, {did['mistakes']} mistakes, each answered as "
        f"expected, {did['proposals']} proposed commands run as printed "
        f"({time.monotonic() - started:.0f} s)",
        flush=True,
    )
    return ""


def environment(folder: Path) -> dict[str, str]:
    """Of a user without settings, whose compiled kernels are the tours' own."""
    others = {
        name: one for name, one in os.environ.items() if not re.match("GATHERD_|PYTHON", name)
    }
    return {**others, "XDG_CACHE_HOME": str(folder / "cache")}


def run(command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Run it, and show what it printed only when it failed."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long it took."""
    started = time.monotonic()
    yield
    print(f"{what} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
