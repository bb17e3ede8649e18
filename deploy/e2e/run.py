"""Builds the images, starts the whole deployment, and checks each promise of docs/deploy.md.

    COMPOSE="docker compose" python deploy/e2e/run.py      # or COMPOSE=podman-compose, …

It takes some five minutes, makes a project of its own (`gatherd-e2e`) on free ports of 127.0.0.1,
and removes containers, networks and volumes at the end, also when it fails. Its output is what
docs/deploy.md shows. Left out on purpose: Grafana, whose queries are asked of Prometheus instead.
"""

import json
import os
import re
import tempfile
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deployment import LABEL, Deployment, answers, status_of, wait_until
from gatherd import Client
from load import DIM, PUSH_SECONDS, ROWS, TABLE, Pushers, SlowReader, Traffic
from observed import EMPTY_IS_FINE, Prometheus, alert_names, dashboard_queries

Floats = NDArray[np.float32]

KILLS: Final = 3
# A checkpoint comes every minute, and shows in a rate at the scrape after it.
DASHBOARD_SECONDS: Final = 150
LIKED: Final = [11, 12, 13]
CANDIDATES: Final = [21, 22, 23, 24]
SCORER: Final = {"liked": LIKED, "candidates": CANDIDATES}


def title(text: str) -> None:
    """Begin a part."""
    print(f"\n== {text}", flush=True)


def build(deployment: Deployment) -> None:
    """Build both images, and print their sizes and contents."""
    title("Images")
    began = time.monotonic()
    deployment.compose("build", "gatherd", "scorer")
    print(f"built in {time.monotonic() - began:.0f} s")
    for image in ("gatherd", "gatherd-scorer"):
        size = int(deployment.engine("image", "inspect", "--format", "{{.Size}}", image))
        print(f"{image}: {size / 1e6:.0f} MB with its base")
    packages = "/opt/gatherd/lib/python3*/site-packages"
    names = ("llvmlite", "numba", "numpy", "numpy.libs", "grpc", "uvloop")
    parts = " ".join(["/opt/gatherd", *(f"{packages}/{name}" for name in names)])
    print("of which, in MB:")
    print(in_image(deployment, f"for part in {parts} /opt/demo; do du -sm $part; done"))


def in_image(deployment: Deployment, script: str, *options: str) -> str:
    """Run a shell's script in the image, hardened as in the compose file."""
    hardened = (
        "--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--network", "none",
    )  # fmt: skip
    return deployment.engine(
        "run", *hardened, *options, "--entrypoint", "sh", "gatherd", "-c", script
    ).strip()


def kernels(deployment: Deployment) -> None:
    """The image's kernels are used as they are; without AVX2 they have to be compiled."""
    title("Kernels")
    print("in the image:         ", in_image(deployment, "python /opt/gatherd/kernels.py check"))
    anew = in_image(
        deployment, "python /opt/gatherd/kernels.py load", "-e", "GATHERD_BUILT_KERNELS="
    )
    print("on an older processor:", anew)


def refuses_to_serve_everybody(deployment: Deployment) -> None:
    """Without tokens the server names what is missing, and exits."""
    title("Without tokens")
    print(in_image(deployment, "gatherd serve 2>&1 || echo exit status $?"))


def up(deployment: Deployment) -> None:
    """Everything but Grafana up, gatherd healthy, ports on 127.0.0.1, the root read-only."""
    title("Up")
    deployment.compose("up", "--detach", "gatherd", "scorer", "prometheus")
    wait_until(deployment.is_ready, "gatherd is ready")
    check = ("python", "-I", "-S", "/opt/gatherd/healthcheck.py")
    print("health check:", deployment.inside("gatherd", *check))
    for service in ("gatherd", "scorer", "prometheus"):
        known = deployment.inspected(service)
        assert known["HostConfig"]["ReadonlyRootfs"], service
        published = deployment.engine("port", deployment.container(service)).split("\n")
        shown = [line for line in published if line]
        assert all("127.0.0.1:" in line for line in shown), shown
        user = known["Config"]["User"]
        print(f"{service}: user {user}, root read-only, published: {', '.join(shown)}")
    print(deployment.inside("gatherd", "id"))
    print(deployment.inside("gatherd", "ls", "-ln", "/run/gatherd"))
    others = deployment.inside("gatherd", "cat", "/run/gatherd/scorer", check=False)
    assert others == "", "gatherd's user reads the scorer's token"
    assert "compiled anew" not in deployment.engine("logs", deployment.container("gatherd"))


def make_token(deployment: Deployment) -> str:
    """A token for this host, made by the command in docs/deploy.md."""
    said = deployment.compose(
        "run", "--rm", "init", "token", "host", "--table", "*",
        "--scope", "read", "--scope", "update", "--scope", "admin",
    )  # fmt: skip
    (token,) = re.findall(r"^(gatherd_\S+)\s*$", said, re.MULTILINE)
    found: str = token
    return found


def demo_rows(deployment: Deployment) -> Floats:
    """The table as the image has it, read without gatherd."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokens.safetensors")
        source = f"{deployment.container('gatherd')}:/opt/demo/tokens.safetensors"
        deployment.engine("cp", source, str(path))
        raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    tensor = json.loads(raw[8 : 8 + length])["embedding.weight"]
    begin, end = tensor["data_offsets"]
    dtype = {"F16": "<f2", "F32": "<f4"}[tensor["dtype"]]
    rows = np.frombuffer(raw[8 + length + begin : 8 + length + end], dtype)
    return rows.reshape(tensor["shape"]).astype(np.float32)


def from_the_host(deployment: Deployment, token: str, rows: Floats) -> None:
    """Lookups and an update work over both ports, and nothing without a token."""
    title("From the host")
    refused = status_of(f"{deployment.http}/v1/tables")
    assert refused == 401, refused
    print(f"without a token: {refused}")
    ids = np.arange(0, 32_000, 7)
    for url in (deployment.http, deployment.grpc):
        with Client(url, token=token) as client:
            # The server looks at its file of tokens every second.
            wait_until(lambda client=client: knows(client), "the new token is known")  # type: ignore[misc]
            assert np.array_equal(client.lookup("tokens", ids), rows[ids])
            before = client.lookup("words", ids[:9])
            deltas = np.full((9, rows.shape[1]), 0.25, np.float32)
            lsn = client.scatter_add("words", ids[:9], deltas).lsn
            # The table's rows are float16.
            added = (before + deltas).astype(np.float16)
            assert np.array_equal(client.lookup("words", ids[:9]), added)
            client.assign("words", ids[:9], rows[ids[:9]])
        print(
            f"{url.partition(':')[0]}: {ids.size} rows as in the file, an update at LSN {lsn} seen"
        )


def knows(client: Client) -> bool:
    """Whether the server takes the client's token."""
    try:
        client.tables()
    except Exception as error:  # noqa: BLE001 - any refusal; the caller gives up in the end
        print(f"not yet: {error}", flush=True)
        return False
    return True


def from_the_neighbour(deployment: Deployment, token: str) -> None:
    """The model server scores and trains through gatherd, by its service's name."""
    title("From the model server")
    with Client(deployment.http, token=token) as client:
        liked, candidates = client.lookup_many({"words": LIKED}), client.lookup("words", CANDIDATES)
        expected = 1 / (1 + np.exp(-(candidates @ liked["words"].mean(axis=0))))
        answer = deployment.ask_scorer("score", SCORER)
        assert np.allclose(answer["scores"], expected, atol=1e-5), (answer, expected)
        assert not answer["fallback"]
        print("scores as NumPy's:", [round(value, 4) for value in answer["scores"]])
        lsn = client.table("words").lsn
        told = {"liked": LIKED, "candidate": CANDIDATES[0], "clicked": True}
        trained = deployment.ask_scorer("feedback", told)
        assert trained["lsn"] == lsn + 1, (trained, lsn)
        after = deployment.ask_scorer("score", SCORER)["scores"][0]
        assert after > answer["scores"][0]
        print(f"a click trained it: {answer['scores'][0]:.4f} → {after:.4f}, LSN {trained['lsn']}")


def observe(deployment: Deployment, token: str) -> None:
    """Prometheus scrapes with its own token, has our rules, and answers the dashboard."""
    title("Prometheus")
    prometheus = Prometheus(f"http://127.0.0.1:{deployment.ports['PROMETHEUS_PORT']}")
    wait_until(lambda: answers(f"{prometheus.url}/-/ready"), "Prometheus is ready")
    deployment.inside("gatherd", "gatherd", "snapshot")
    with Traffic([deployment.http, deployment.grpc], token) as traffic:
        wait_until(prometheus.is_scraping, "gatherd is scraped")
        version = prometheus.get("status/buildinfo")["version"]
        print(f"Prometheus {version} scrapes gatherd with its token")
        wait_until(lambda: prometheus.rules().keys() == alert_names(), "every rule is evaluated")
        states = prometheus.rules()
        print(f"{len(states)} alert rules loaded; firing: {sorted(firing(states)) or 'none'}")
        shown = shown_by(prometheus)
    print(f"(traffic meanwhile: {sum(traffic.requests)} requests)")
    nothing = [panel for panel, query in dashboard_queries() if query not in shown]
    print(
        f"{len(dashboard_queries())} queries of the dashboard answered; empty: {nothing or 'none'}"
    )
    for panel, query in dashboard_queries():
        series = shown.get(query, [])
        some = ", ".join(told(one) for one in series[:3])
        print(f"  {panel:32} {len(series):2} series  {some}{' …' if len(series) > 3 else ''}")


def shown_by(prometheus: Prometheus) -> dict[str, list[Any]]:
    """The first result of each query of the dashboard that had one.

    AssertionError naming those without a result although a healthy server has such series.
    """
    shown: dict[str, list[Any]] = {}
    deadline = time.monotonic() + DASHBOARD_SECONDS
    while True:
        for _, query in dashboard_queries():
            if query not in shown and (series := prometheus.series(query)):
                shown[query] = series
        missing = [
            f"{panel}: {query}"
            for panel, query in dashboard_queries()
            if query not in shown and not any(name in query for name in EMPTY_IS_FINE)
        ]
        if not missing:
            return shown
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing in {missing}")
        time.sleep(3)


def told(series: dict[str, Any]) -> str:
    """A series' labels and value, short."""
    labels = {
        name: value for name, value in series["metric"].items()
        if name not in ("__name__", "instance", "job")
    }  # fmt: skip
    return f"{' '.join(labels.values())}{'=' if labels else ''}{float(series['value'][1]):.4g}"


def firing(states: dict[str, str]) -> set[str]:
    """The alerts that fire."""
    return {name for name, state in states.items() if state == "firing"}


def killed(deployment: Deployment, token: str) -> None:
    """The container is killed under pushes, and loses none that it acknowledged."""
    title("Killed during pushes")
    urls = [deployment.http, deployment.grpc] * 2
    with Client(deployment.http, token=token) as client:
        before, lsn = client.lookup(TABLE, range(ROWS)), client.table(TABLE).lsn
    with Pushers(urls, token) as pushers:
        for turn in range(1, KILLS + 1):
            count = sum(pushers.acknowledged)
            wait_until(lambda count=count: sum(pushers.acknowledged) > count + 200, "pushes")  # type: ignore[misc]
            deployment.kill()
            at = sum(pushers.acknowledged)
            began = time.monotonic()
            answer = deployment.ask_scorer("score", SCORER)
            elapsed = time.monotonic() - began
            assert answer["fallback"], answer
            ready = deployment.start_to_ready()
            print(
                f"SIGKILL {turn} after {at} pushes; the scorer's fallback came in {elapsed:.2f} s; "
                f"ready again {ready:.1f} s after the start"
            )
        count = sum(pushers.acknowledged)
        wait_until(lambda: sum(pushers.acknowledged) > count + 200, "pushes go on")
    assert not pushers.errors, pushers.errors
    pushed = sum(pushers.acknowledged)
    with Client(deployment.http, token=token) as client:
        held, lsn_after = client.lookup(TABLE, range(ROWS)), client.table(TABLE).lsn
    assert np.array_equal(held, before + pushers.expected())
    assert lsn_after - lsn == pushed, (lsn, lsn_after, pushed)
    print(f"{pushed} pushes acknowledged, as many LSNs, the table as NumPy's bit for bit")


def drained(deployment: Deployment, token: str, rows: Floats) -> None:
    """A stop answers the requests in flight, loses nothing, and ends with status 0."""
    title("Stopped during requests")
    host = deployment.http.removeprefix("http://")
    rng = np.random.default_rng(1)
    with Client(deployment.http, token=token, timeout=PUSH_SECONDS, retries=100) as client:
        before = client.lookup(TABLE, range(ROWS))
        readers = [
            SlowReader.begin(host, token, rng.integers(0, len(rows), 60_000)) for _ in range(4)
        ]
        with Pushers([deployment.http, deployment.grpc], token) as pushers:
            wait_until(lambda: sum(pushers.acknowledged) > 100, "pushes")
            stop = threading.Thread(target=deployment.compose, args=("stop", "gatherd"))
            began = time.monotonic()
            stop.start()
            wait_until(lambda: not answers(f"{deployment.http}/readyz"), "gatherd stops")
            lengths = [reader.finish(rows) for reader in readers]
            stop.join()
            seconds = time.monotonic() - began
            code = deployment.inspected("gatherd")["State"]["ExitCode"]
            assert code == 0, code
            print(
                f"4 replies of {lengths[0] / 1e6:.0f} MB, begun before the stop, came whole; "
                f"exit code {code} after {seconds:.1f} s"
            )
            ready = deployment.start_to_ready()
        assert not pushers.errors, pushers.errors
        assert np.array_equal(client.lookup(TABLE, range(ROWS)), before + pushers.expected())
    print(
        f"ready {ready:.1f} s after the start; "
        f"all {sum(pushers.acknowledged)} pushes of before and after are there"
    )


def memory(deployment: Deployment) -> None:
    """The memory that the processes of gatherd's container hold."""
    title("Memory")
    script = (
        "for p in /proc/[0-9]*; do "
        'echo $(awk \'/^Private|^Pss:/ {s[$1] += $2} END {print int((s["Private_Clean:"] + '
        's["Private_Dirty:"]) / 1024), int(s["Pss:"] / 1024)}\' $p/smaps_rollup) '
        "$(tr '\\0' ' ' < $p/cmdline | cut -c-60); done"
    )
    print("private MB, PSS MB, process")
    for line in deployment.inside("gatherd", "sh", "-c", script).splitlines():
        if "gatherd" in line and "awk" not in line:
            print(f"  {line}")


def down(deployment: Deployment) -> None:
    """Remove the deployment, and check that nothing is left."""
    title("Down")
    deployment.compose("down", "--volumes")
    for kind in (("ps", "-aq"), ("network", "ls", "-q"), ("volume", "ls", "-q")):
        left = deployment.engine(*kind, "--filter", LABEL).split()
        assert not left, (kind, left)
    print("no container, network or volume is left")


def story(deployment: Deployment) -> None:
    """Run every part, in order."""
    build(deployment)
    kernels(deployment)
    refuses_to_serve_everybody(deployment)
    up(deployment)
    token = make_token(deployment)
    rows = demo_rows(deployment)
    from_the_host(deployment, token, rows)
    from_the_neighbour(deployment, token)
    deployment.inside(
        "gatherd", "gatherd", "create", TABLE, "--rows", str(ROWS), "--dim", str(DIM),
        "--init", "zeros", "--optimizer", "sgd",
    )  # fmt: skip
    observe(deployment, token)
    killed(deployment, token)
    drained(deployment, token, rows)
    memory(deployment)


def main() -> None:
    """Run the test, and take everything down whatever happens."""
    deployment = Deployment.of_environment()
    try:
        story(deployment)
    except (AssertionError, urllib.error.URLError):
        for service in ("gatherd", "scorer", "prometheus", "init"):
            logs = deployment.engine("logs", "--tail", "30", deployment.container(service))
            print(f"--- log of {service}\n{logs}")
        raise
    finally:
        if not os.environ.get("E2E_KEEP"):
            down(deployment)
    print("\nall of it works")


if __name__ == "__main__":
    main()
