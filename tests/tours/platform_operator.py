"""The first hour of somebody who runs services.

Settings, tokens, TLS, logs, metrics, snapshots, backups, a drain. What is mistyped is found before
traffic comes, and scripts can tell errors apart by the exit status.
"""

import json
import re
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from gatherd import Client, FailedPrecondition, PermissionDenied, Unauthenticated, Unavailable
from tours.terminal import Server, Terminal, terminal


def settings(user: Terminal) -> None:
    """By environment and TOML; what is misspelled is an error that says where it is."""
    np.save("rows.npy", np.arange(40, dtype=np.float32).reshape(10, 4))
    user.types("gatherd import items rows.npy --optimizer sgd --data-dir ./data")
    user.exports(GATHERD_WORKRES="2")
    user.mistypes(
        "gatherd serve --data-dir ./data", "GATHERD_WORKRES", "did you mean 'GATHERD_WORKERS'?"
    )
    user.exports(GATHERD_WORKRES=None, GATHERD_WORKERS="two")
    user.mistypes("gatherd serve --data-dir ./data", "GATHERD_WORKERS", "two")
    user.exports(GATHERD_WORKERS="2")

    Path("gatherd.toml").write_text('data_dir = "./data"\nlog_fromat = "json"\n')
    user.mistypes("gatherd serve --config gatherd.toml", "gatherd.toml", "log_fromat",
                  "did you mean 'log_format'?")  # fmt: skip
    Path("gatherd.toml").write_text('data_dir = "./data"\nlog_format = "yaml"\n')
    user.mistypes("gatherd serve --config gatherd.toml", "gatherd.toml", "line 2", "json")
    Path("gatherd.toml").write_text(
        'data_dir = "./data"\nlog_format = "json"\n'
        'snapshot_dir = "./snapshots"\naccess_log = true\n'
    )
    user.types("gatherd config --config gatherd.toml", "workers = 2", "GATHERD_WORKERS",
               'log_format = "json"', "gatherd.toml")  # fmt: skip
    shown = json.loads(user.types("gatherd config --config gatherd.toml --json"))
    assert "workers" in str(shown)

    # Others can reach this address, and nobody would be asked who they are.
    user.mistypes("gatherd serve --config gatherd.toml --http 0.0.0.0:0 --check", "--tokens",
                  "--insecure")  # fmt: skip
    user.exports(GATHERD_WORKERS="2")
    user.types("gatherd serve --config gatherd.toml --check")


def tokens(user: Terminal) -> dict[str, str]:
    """One for each who asks, and what it allows."""
    user.mistypes("gatherd serve --config gatherd.toml --tokens tokens --check", "no token file")
    made = {
        "ranker": user.types_what_it_says(filled={"NAME": "ranker --scope read --table 'items*'"}),
        "ops": user.types(
            "gatherd token ops --scope admin --scope read --table '*' --tokens tokens"
        ),
        "prometheus": user.types("gatherd token prometheus --scope metrics --tokens tokens"),
    }
    user.mistypes("gatherd token trainer --scope raed --tokens tokens", "read")
    user.mistypes("gatherd token trainer --scope update --tokens tokens", "--table")
    again = "gatherd token ranker --scope read --table '*' --tokens tokens"
    user.mistypes(again, "'ranker'", "choose another name, or --revoke it", status=5)
    listed = user.types(
        "gatherd token --list --tokens tokens", "ranker", "ops", "items*", "metrics"
    )
    for name, token in made.items():
        assert token.strip() not in listed
        Path(f"{name}.token").write_text(token)
    return {name: token.strip() for name, token in made.items()}


def certificates() -> None:
    """An authority of one's own, and a certificate of its for localhost."""
    curve = "-pkeyopt ec_paramgen_curve:P-256 -nodes"
    for command in (
        f"openssl req -x509 -newkey ec {curve} -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        f"openssl req -newkey ec {curve} -subj /CN=server -keyout server.key -out server.csr",
        (
            "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial "
            "-days 2 -extfile server.ext -out server.pem"
        ),
    ):
        Path("server.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)


def asking_safely(user: Terminal, server: Server, token: str) -> None:
    """Without the authority, with the wrong scheme, without a token: each says what to pass."""
    plain = server.http.replace("https", "http")
    user.mistypes(f"gatherd tables --url {plain} --ca ca.pem", "https://")
    user.mistypes(f"gatherd ping --url {plain}", server.http, status=3)
    user.types("gatherd ping --ca ca.pem --token-file ranker.token", "ready")
    user.mistypes("gatherd tables --token-file ranker.token", "--ca FILE", status=5)
    user.types_what_it_says("items", filled={"FILE": "ca.pem"})
    user.exports(GATHERD_CA="ca.pem")
    user.mistypes("gatherd tables", "--token-file FILE", "GATHERD_TOKEN", "gatherd token", status=5)
    user.exports(GATHERD_TOKEN_FILE="ranker.token")
    user.types("gatherd lookup items 1", "1: 4 5 6 7")
    user.mistypes("gatherd publish items --url $GATHERD_URL", "admin", status=5)
    user.mistypes("gatherd lookup secrets 1", "items*", status=5)

    with (
        user.mistake(FailedPrecondition, "ca="),
        Client(server.http, token=token, retries=0) as client,
    ):
        client.tables()
    with user.mistake(Unauthenticated, "token"), Client(server.http, ca="ca.pem") as client:
        client.tables()
    for url in (server.http, server.grpc):
        with Client(url, token=token, ca="ca.pem") as client:
            assert client.lookup("items", [1]).tolist() == [[4, 5, 6, 7]]
            with user.mistake(PermissionDenied, "update", "ranker"):
                client.scatter_add("items", [1], np.ones((1, 4)))


def observing(user: Terminal, server: Server) -> None:
    """Logs that a machine reads, a line for each request, and metrics."""
    user.mistypes("gatherd top --once", "--scope metrics", "--token-file FILE", status=5)
    shown = user.types(
        'curl -s --cacert ca.pem -H "Authorization: Bearer $(cat prometheus.token)" '
        "$GATHERD_URL/metrics",
        "gatherd_build_info{",
        'gatherd_table_rows{table="items"} 10',
    )
    assert re.search(r'gatherd_build_info\{version="[\d.]+\S*",commit="[^"]*",python="3\.', shown)
    user.types("gatherd top --once --token-file prometheus.token", "items")
    logged = [json.loads(line) for line in server.log.splitlines()]
    requests = [line for line in logged if line.get("path", "").endswith("Lookup")]
    assert any(line["caller"] == "ranker" and line["tables"] == ["items"] for line in requests)
    assert {"time", "level", "logger", "pid", "message"} <= set(logged[0])
    assert json.loads(server.banner.splitlines()[-1])


def snapshots(user: Terminal) -> None:
    """Taken, listed, copied away, deleted, and restored."""
    user.exports(GATHERD_TOKEN_FILE="ops.token")
    user.types("gatherd snapshot monday --url $GATHERD_URL", "monday")
    user.types("gatherd snapshot tuesday --url $GATHERD_URL", "tuesday")
    user.mistypes("gatherd snapshot monday --url $GATHERD_URL", "monday", status=5)
    user.types("gatherd snapshots", "monday", "tuesday")
    user.mistypes("gatherd snapshots delete munday --yes", "munday", status=4)
    user.types("gatherd snapshots delete monday --yes")
    assert "monday" not in user.types("gatherd snapshots")

    user.types("gatherd backup ./snapshots ./elsewhere", "tuesday")
    user.types("gatherd backups ./elsewhere --verify", "tuesday")
    restore = "gatherd restore ./elsewhere"
    user.mistypes(f"{restore}/monday --data-dir ./restored", "elsewhere has tuesday", status=6)
    user.mistypes(f"{restore} --data-dir ./restored", "elsewhere has tuesday", status=6)
    user.types(f"{restore} --newest --data-dir ./restored", "tuesday")
    user.mistypes(f"{restore} --newest --data-dir ./restored", "restore to a new folder", status=5)
    user.types("gatherd verify --data-dir ./restored", "items v1: ok")
    user.types("gatherd lookup items 1 --data-dir ./restored", "1: 4 5 6 7")


def draining(user: Terminal, server: Server, token: str) -> None:
    """SIGTERM while requests come: none that was accepted is lost."""
    answered: list[int] = []
    refused: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        with Client(server.http, token=token, ca="ca.pem", retries=0) as client:
            while not stop.is_set():
                try:
                    answered.append(len(client.lookup("items", [1, 2])))
                except Unavailable as error:
                    refused.append(error)
                    return

    asking = threading.Thread(target=ask)
    asking.start()
    deadline = time.monotonic() + 30
    while len(answered) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.stops() == 0
    asking.join(30)
    stop.set()
    assert len(answered) >= 20
    # Only that no server listens any more, and not an answer that broke off.
    assert all("can't connect" in str(error) for error in refused), refused
    for line in server.log.splitlines():
        json.loads(line)


def exit_statuses(user: Terminal) -> None:
    """docs/cli.md has what each says to a script."""
    user.exports(GATHERD_CA=None, GATHERD_TOKEN_FILE=None, GATHERD_URL=None, GATHERD_WORKERS=None)
    data = "--data-dir ./data"
    server = user.serves(f"gatherd serve {data}")
    with urllib.request.urlopen(f"{server.http}/readyz") as reply:
        assert json.load(reply)["status"] == "ready"
    port = server.http.rpartition(":")[2]
    user.mistypes(f"gatherd serve {data} --http 127.0.0.1:0 --grpc 127.0.0.1:0", "in use", status=3)
    user.mistypes(f"gatherd serve rows=rows.npy --http 127.0.0.1:{port} --grpc 127.0.0.1:0",
                  "--http", status=3)  # fmt: skip
    assert server.stops() == 0
    user.exports(GATHERD_URL=None)
    user.mistypes("gatherd ping --url http://127.0.0.1:9", "gatherd serve", status=3)
    user.mistypes(f"gatherd lookup items 10 {data}", "valid ids are 0 to 9", status=4)
    user.mistypes(f"gatherd lookup items 1 --version 5 {data}", status=4)
    user.types_what_it_says("1")
    user.mistypes(
        "gatherd tables --data-dir ./nothing", "gatherd import", "gatherd create", status=4
    )
    weights = next(Path("data/tables/items").glob("v*/weights.npy"))
    weights.write_bytes(weights.read_bytes()[:-8])
    user.mistypes(f"gatherd lookup items 1 {data}", "truncated", "gatherd verify", status=5)
    user.mistypes(user.proposed(), "weights.npy is truncated", status=6)


with terminal() as user:
    settings(user)
    made = tokens(user)
    certificates()
    server = user.serves("gatherd serve --config gatherd.toml --tokens tokens --drain-seconds 10 "
                         "--tls-cert server.pem --tls-key server.key")  # fmt: skip
    asking_safely(user, server, made["ranker"])
    observing(user, server)
    snapshots(user)
    draining(user, server, made["ranker"])
    exit_statuses(user)
