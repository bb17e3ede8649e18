"""What this gatherd is: its version, and the commit that it was built from.

A wheel carries its commit in COMMIT_FILE, which `service/hatch_build.py` writes when the wheel is
built. A checkout has no such file: there git is asked. A commit is 40 hexadecimal digits, followed
by "-dirty" when the code has changes that aren't committed. Where neither source knows, the commit
is UNKNOWN; nothing is guessed.

Left out on purpose: the time of the build, so that two builds of one commit are the same bytes.
"""

import functools
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

COMMIT_FILE: Final = "commit.txt"
UNKNOWN: Final = "unknown"
GIT_SECONDS: Final = 5

# What a wheel is made of.
_SOURCES: Final = ("client", "service", "proto", "pyproject.toml")
_PACKAGE: Final = Path(__file__).parent
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(-dirty)?")


@dataclass(frozen=True, slots=True)
class Build:
    """The facts of a build."""

    version: str
    """The distribution's, such as "0.1.0"."""
    commit: str
    """40 hexadecimal digits, perhaps with "-dirty" behind them, or UNKNOWN."""

    def __str__(self) -> str:
        return f"gatherd {self.version} (commit {self.commit})"


@functools.cache
def this_build() -> Build:
    """The build that runs, as it was when this was first asked. In a checkout it starts git."""
    written = _PACKAGE / COMMIT_FILE
    if written.exists():
        commit = written.read_text("ascii", "replace").strip()
        return Build(version("gatherd"), commit if is_commit(commit) else UNKNOWN)
    return Build(version("gatherd"), commit_of_checkout(_PACKAGE.parents[1]))


def is_commit(text: str) -> bool:
    """Whether `text` has the form of a commit."""
    return _COMMIT.fullmatch(text) is not None


def commit_of_checkout(root: Path) -> str:
    """HEAD of the repository whose top is `root`, or UNKNOWN; `root` must be this project's."""
    # Some other repository may hold an unpacked archive, or an environment with gatherd in it.
    if not (root / ".git").exists() or not (root / "service/hatch_build.py").exists():
        return UNKNOWN
    try:
        commit = _git(root, "rev-parse", "--verify", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *_SOURCES)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    if not is_commit(commit):
        return UNKNOWN
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", root, *arguments],  # noqa: S607  # whichever git the user has
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS,
        check=True,
    )
    return done.stdout.strip()
