"""The command line in this process: a new one takes a second to import what it needs."""

import os
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from gatherd_server.cli.main import cli


@dataclass(frozen=True, slots=True)
class Done:
    """A command's output, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def invoke(
    *arguments: str | Path, check: bool = True, environment: dict[str, str] | None = None
) -> Done:
    """Run `gatherd …` here, apart from settings that this process' environment may hold."""
    settings: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith("GATHERD_")
    }
    settings |= environment or {}
    result = CliRunner().invoke(cli, [str(one) for one in arguments], env=settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if check and result.exit_code != 0:
        raise AssertionError(f"gatherd {arguments} exited {result.exit_code}: {result.stderr}")
    return Done(result.exit_code, result.stdout, result.stderr)
