"""The terminal of a tour's user: commands are typed as they are written, and their output read.

A mistake is made on purpose. Its message has to say what the tour expects of it; where it proposes
a command, `types_what_it_says` runs that command as it was printed.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gatherd import GatherdError

START_SECONDS = 240
COMMAND_SECONDS = 120
# As an error ends with it, or has it in backquotes.
_PROPOSED = re.compile(r"(?:: |`)(gatherd [^`\n]+?)(?:`|$)", re.MULTILINE)


class Server:
    """A `gatherd serve` that runs, where it listens, and its log."""

    def __init__(self, process: subprocess.Popen[str], log_path: Path) -> None:
        self.process = process
        self._log_path = log_path
        self.banner = self._announced()
        self.http = re.findall(r"\bhttps?://[\w.]+:\d+", self.banner)[0]
        self.grpc = re.findall(r"\bgrpcs?://[\w.]+:\d+", self.banner)[0]

    @property
    def log(self) -> str:
        """What it wrote on standard error so far."""
        return self._log_path.read_text()

    def waits_for(self, line: str, seconds: float = 20) -> None:
        """Until the log has `line`; AssertionError with the log when it doesn't come."""
        deadline = time.monotonic() + seconds
        while line not in self.log:
            assert time.monotonic() < deadline, f"no {line!r} in the server's log:\n{self.log}"
            time.sleep(0.02)

    def hangs_up(self) -> None:
        """`kill -HUP`."""
        self.process.send_signal(signal.SIGHUP)

    def stops(self) -> int:
        """`kill`, or Ctrl-C: SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(COMMAND_SECONDS)

    def _announced(self) -> str:
        assert self.process.stdout is not None
        output, text = self.process.stdout.fileno(), ""
        deadline = time.monotonic() + START_SECONDS
        while not re.search(r"^(?:  grpc |\{).*\n", text, re.MULTILINE):
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(output, 65536) if ready else b""
            if not data:
                self.process.kill()
                raise AssertionError(f"the server didn't start:\n{text}{self.log}")
            text += data.decode()
        return text


class Terminal:
    """A shell in the current folder, without settings of gatherd's in its environment."""

    def __init__(self) -> None:
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GATHERD_")
        }
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.commands = self.mistakes = self.proposals = 0
        self._error = ""
        self._servers: list[Server] = []

    def exports(self, **variables: str | None) -> None:
        """`export NAME=value`, or for None `unset NAME`."""
        for name, value in variables.items():
            self.environment.pop(name, None)
            if value is not None:
                self.environment[name] = value

    def types(self, line: str, *shown: str, answers: str = "") -> str:
        """Run a command that succeeds; what it prints on standard output has all of `shown`."""
        done = self._run(line, answers)
        assert done.returncode == 0, f"$ {line}\nended with {done.returncode}:\n{done.stderr}"
        for text in shown:
            assert text in done.stdout, f"$ {line}\nno {text!r} in\n{done.stdout}{done.stderr}"
        return done.stdout

    def mistypes(self, line: str, *says: str, status: int = 2) -> str:
        """Run a command that is wrong; its error has all of `says`, and it ends with `status`."""
        done = self._run(line)
        got = f"$ {line}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert done.returncode == status, f"{got}\ninstead of {status}"
        assert "Traceback" not in done.stderr, got
        for text in says:
            assert text in done.stderr, f"{got}\nwithout {text!r}"
        self.mistakes += 1
        self._error = done.stderr
        return done.stderr

    def proposed(self) -> str:
        """The command that the last error proposes, as it is printed."""
        found = _PROPOSED.findall(self._error.rpartition("Error: ")[2])
        assert found, f"no command is proposed: {self._error}"
        return str(found[0])

    def types_what_it_says(
        self, *shown: str, filled: Mapping[str, str] | None = None, answers: str = ""
    ) -> str:
        """Run the command that the last error proposes, which succeeds.

        filled: what is put in the place of placeholders. answers: what it is told when it asks.
        """
        command = self.proposed()
        for placeholder, value in (filled or {}).items():
            assert placeholder in command, f"no {placeholder} to fill in: {command}"
            command = command.replace(placeholder, value)
        self.proposals += 1
        return self.types(command, *shown, answers=answers)

    @contextmanager
    def mistake(self, error: type[GatherdError], *says: str) -> Iterator[None]:
        """Lines of Python that are wrong: they raise `error`, whose message has all of `says`."""
        message = None
        try:
            yield
        except error as raised:
            message = str(raised)
        assert message is not None, f"no {error.__name__}, which was to say {says}"
        for text in says:
            assert text in message, f"no {text!r} in {message}"
        self.mistakes += 1
        self._error = message

    def serves(self, line: str) -> Server:
        """Start `gatherd serve …` in a second terminal, at ports that are free.

        Commands without a target ask this server from now on, as they would ask the usual port.
        """
        log_path = Path(f"serve-{self.commands}.log").absolute()
        environment = {"GATHERD_HTTP": "127.0.0.1:0", "GATHERD_GRPC": "127.0.0.1:0"}
        self.commands += 1
        log: IO[bytes]
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**environment, **self.environment},
            )
        server = Server(process, log_path)
        self._servers.append(server)
        self.exports(GATHERD_URL=server.http)
        return server

    def leaves(self) -> None:
        """Stop what still runs, and print what was done."""
        self.closes()
        print(
            json.dumps(
                {
                    "commands": self.commands,
                    "mistakes": self.mistakes,
                    "proposals": self.proposals,
                }
            )
        )

    def closes(self) -> None:
        """Kill the servers that still run."""
        for server in self._servers:
            if server.process.poll() is None:
                server.stops()

    def _run(self, line: str, answers: str = "") -> subprocess.CompletedProcess[str]:
        self.commands += 1
        return subprocess.run(
            ["bash", "-c", line],
            input=f"{answers}\n",
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=COMMAND_SECONDS,
        )


@contextmanager
def terminal() -> Iterator[Terminal]:
    """One user's hour; the count of what was done is the last line that it prints."""
    user = Terminal()
    try:
        yield user
        user.leaves()
    finally:
        user.closes()
