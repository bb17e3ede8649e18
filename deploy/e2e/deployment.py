"""The deployment under test: docker-compose.yml under a project of its own, on free ports.

Any compose engine will do: COMPOSE="docker compose" (the default), COMPOSE="podman-compose", …; the
command for single containers is its first word less "-compose", or ENGINE.
"""

import json
import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parent.parent.parent
PROJECT: Final = "gatherd-e2e"
PORTS: Final = (
    "GATHERD_HTTP_PORT",
    "GATHERD_GRPC_PORT",
    "SCORER_PORT",
    "PROMETHEUS_PORT",
)
LABEL: Final = f"label=com.docker.compose.project={PROJECT}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """Runs commands of the engine, and knows the addresses of the services."""

    compose_command: list[str]
    engine_command: list[str]
    environment: dict[str, str]
    ports: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_environment(cls) -> Self:
        """Use the commands in COMPOSE and ENGINE."""
        compose = shlex.split(os.environ.get("COMPOSE", "docker compose"))
        engine = shlex.split(os.environ.get("ENGINE", compose[0].removesuffix("-compose")))
        ports = {name: free_port() for name in PORTS}
        environment = {
            **os.environ,
            **{name: str(port) for name, port in ports.items()},
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_PROFILES": "observe",
        }
        return cls(compose, engine, environment, ports)

    def compose(self, *arguments: str) -> str:
        """Run a compose command, and show it."""
        print(f"$ {shlex.join([*self.compose_command, *arguments])}", flush=True)
        return self._run([*self.compose_command, *arguments])

    def engine(self, *arguments: str, check: bool = True) -> str:
        """Run a command of the engine for single containers; returns its standard output."""
        return self._run([*self.engine_command, *arguments], check=check)

    def _run(self, command: list[str], *, check: bool = True) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{shlex.join(command)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        found = self.engine(
            "ps", "-aq", "--filter", LABEL,
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        if len(found) != 1:
            raise AssertionError(f"{service} has {len(found)} containers, not one")
        return found[0]

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """The output of a command that is run in a service's container, as its user."""
        return self.engine("exec", self.container(service), *command, check=check).strip()

    def inspected(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's container."""
        (known,) = json.loads(self.engine("inspect", self.container(service)))
        found: dict[str, Any] = known
        return found

    @property
    def http(self) -> str:
        """The URL of gatherd for REST and Connect."""
        return f"http://127.0.0.1:{self.ports['GATHERD_HTTP_PORT']}"

    @property
    def grpc(self) -> str:
        """The URL of gatherd for gRPC."""
        return f"grpc://127.0.0.1:{self.ports['GATHERD_GRPC_PORT']}"

    def is_ready(self) -> bool:
        """Whether gatherd says on its published port that it is ready."""
        return answers(f"{self.http}/readyz")

    def ask_scorer(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST to the model server."""
        url = f"http://127.0.0.1:{self.ports['SCORER_PORT']}/{route}"
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    def kill(self) -> None:
        """Send SIGKILL to every process of gatherd's container."""
        # An engine may give up waiting for an end that it notes later.
        self.engine("kill", "--signal", "KILL", self.container("gatherd"), check=False)
        wait_until(lambda: not self.is_ready(), "gatherd is gone", pause_seconds=0.02)

    def start_to_ready(self) -> float:
        """Start gatherd's container, which has ended; seconds until it is ready."""
        container = self.container("gatherd")

        def has_ended() -> bool:
            state = self.inspected("gatherd")["State"]
            return not state["Running"] and state["Status"] in ("exited", "stopped")

        wait_until(has_ended, "the engine knows of the container's end")
        began = time.monotonic()
        self.engine("start", container)
        wait_until(self.is_ready, "gatherd is ready", pause_seconds=0.02)
        return time.monotonic() - began


def free_port() -> int:
    """A port of 127.0.0.1 that no process listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:  # refused, reset, 503
        return False


def status_of(url: str) -> int:
    """The status of the answer to a GET of `url`."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float = 90, pause_seconds: float = 0.2
) -> None:
    """Poll until `condition()` is true; AssertionError naming `what` when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not after {seconds} s: {what}")
        time.sleep(pause_seconds)
