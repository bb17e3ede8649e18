"""The deployment's files fit each other, and what the server takes."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatherd_server.access.token_file import read_tokens
from gatherd_server.settings import ServeSettings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "model_server/Dockerfile"]
SERVER_UID, SCORER_UID = 10001, 10002


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of each, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE))
    return [
        (name, " ".join(rest.split()))
        for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==(\S+)", lock.read_text(), re.MULTILINE))


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def test_every_port_is_published_on_this_machine_only_unless_told_otherwise() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 5
    for port in published:
        assert port.startswith("${PUBLISH:-127.0.0.1}:"), port


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    # Nothing that a plain container hasn't.
    assert not {"shm_size", "ulimits", "devices", "pid", "ipc"} & service.keys()
    assert name == "init" or "cap_add" not in service


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


def test_only_init_writes_to_the_secrets() -> None:
    for name, service in SERVICES.items():
        mounts = [volume for volume in service["volumes"] if volume.startswith("secrets:")]
        assert all(name == "init" or mount.endswith(":ro") for mount in mounts), name


def test_who_needs_init_waits_for_it() -> None:
    for name in ("gatherd", "scorer", "prometheus"):
        needed = SERVICES[name]["depends_on"]["init"]
        assert needed == {"condition": "service_completed_successfully"}


def test_the_environment_sets_settings_that_there_are() -> None:
    for name in SERVICES["gatherd"]["environment"]:
        assert name.removeprefix("GATHERD_").lower() in ServeSettings.model_fields, name
    container = manifests("statefulset.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    for entry in container["env"]:
        assert entry["name"].removeprefix("GATHERD_").lower() in ServeSettings.model_fields


def container() -> dict[str, Any]:
    (stateful,) = manifests("statefulset.yaml")
    found: dict[str, Any] = stateful["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_work_whatever_tls_and_certificates_the_ports_want(probe: str) -> None:
    command = container()[probe]["exec"]["command"]
    *python, script, path = command
    assert python == ["python", "-I", "-S"]
    # As the image's own check, which asks the Unix socket.
    assert script in (DEPLOY / "Dockerfile").read_text()
    assert path == ("/healthz" if probe == "livenessProbe" else "/readyz")


def test_the_volume_of_snapshots_holds_all_that_are_kept_and_the_next() -> None:
    (stateful,) = manifests("statefulset.yaml")
    sizes = {
        claim["metadata"]["name"]: int(
            claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")
        )
        for claim in stateful["spec"]["volumeClaimTemplates"]
    }
    given = {entry["name"]: entry["value"] for entry in container()["env"]}
    kept = int(
        given.get("GATHERD_SNAPSHOT_KEEP", ServeSettings.model_fields["snapshot_keep"].default)
    )
    assert sizes["snapshots"] >= (kept + 1) * sizes["data"]


def test_clients_reach_one_server_however_many_replicas_there_are() -> None:
    (stateful,) = manifests("statefulset.yaml")
    name = stateful["metadata"]["name"]
    first = {"statefulset.kubernetes.io/pod-name": f"{name}-0"}
    for service in manifests("service.yaml"):
        spec = service["spec"]
        # Only the headless one, by whose names one asks for one pod, has them all.
        assert spec.get("clusterIP") == "None" or first.items() <= spec["selector"].items()
    assert stateful["spec"]["replicas"] == 1


def test_names_and_stores_can_be_reached() -> None:
    (policy,) = manifests("network-policy.yaml")
    ports = {
        (port["protocol"], port["port"])
        for rule in policy["spec"]["egress"]
        for port in rule["ports"]
    }
    assert {("UDP", 53), ("TCP", 53), ("TCP", 443)} <= ports


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_bound_of_memory(name: str) -> None:
    assert SERVICES[name]["mem_limit"]
    assert container()["resources"]["limits"]["memory"]


def test_a_stop_outlasts_the_drain() -> None:
    drain = ServeSettings.model_fields["drain_seconds"].default
    grace = int(SERVICES["gatherd"]["stop_grace_period"].removesuffix("s"))
    assert grace >= drain + 10
    pod = manifests("statefulset.yaml")[0]["spec"]["template"]["spec"]
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 10


def test_init_is_a_shell_script_for_the_users_that_there_are() -> None:
    script = DEPLOY / "compose/init.sh"
    subprocess.run(["sh", "-n", script], check=True)
    uids = dict(re.findall(r"(\w+)_uid=(\d+)", script.read_text()))
    assert uids["gatherd"] == str(SERVER_UID)
    assert uids["scorer"] == str(SCORER_UID)
    assert SERVICES["prometheus"]["user"].split(":")[0] == uids["prometheus"]


def test_prometheus_reads_the_token_that_init_makes() -> None:
    (job,) = yaml.safe_load((DEPLOY / "observe/prometheus.yml").read_text())["scrape_configs"]
    path = Path(job["authorization"]["credentials_file"])
    assert str(path.parent) == "/run/gatherd"
    assert f"make_token {path.name} " in (DEPLOY / "compose/init.sh").read_text()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_image_is_built_of_what_is_there_and_locked(dockerfile: Path) -> None:
    let_through = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name, arguments in instructions(dockerfile):
        if name == "COPY" and not arguments.startswith("--from"):
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                parents = {str(parent) for parent in (Path(source), *Path(source).parents)}
                assert parents & let_through, f".dockerignore keeps {source} out"
        for install in re.findall(r"pip install [^&|]*", arguments if name == "RUN" else ""):
            assert "--require-hashes -r" in install or "--no-deps --no-build-isolation ." in install


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_image_has_what_a_wheel_is_built_of(dockerfile: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    targets = project["tool"]["hatch"]["build"]
    needed = {
        project["project"]["readme"],
        *project["project"]["license-files"],
        *targets["targets"]["wheel"]["packages"],
        targets["hooks"]["custom"]["path"],
    }
    copied = {
        source
        for name, arguments in instructions(dockerfile)
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    for path in needed:
        assert copied & {str(part) for part in (Path(path), *Path(path).parents)}, path


@pytest.mark.parametrize(
    ("dockerfile", "uid"), list(zip(DOCKERFILES, (SERVER_UID, SCORER_UID), strict=True))
)
def test_the_image_runs_as_a_fixed_number_that_is_not_root(dockerfile: Path, uid: int) -> None:
    users = [arguments for name, arguments in instructions(dockerfile) if name == "USER"]
    assert users == [f"{uid}:{uid}"]


@pytest.mark.parametrize(
    "lock",
    [
        "requirements-server.lock",
        "requirements-formats.lock",
        "deploy/model_server/requirements.lock",
    ],
)
def test_images_are_locked_to_what_is_tested(lock: str) -> None:
    text = (ROOT / lock).read_text()
    tested = pins(ROOT / "requirements-dev.lock")
    locked = pins(ROOT / lock)
    assert locked
    assert {name: tested.get(name) for name in locked} == locked
    assert text.count("==") <= text.count("--hash=sha256:")


def test_the_manifests_name_what_the_image_has() -> None:
    (stateful,) = manifests("statefulset.yaml")
    pod = stateful["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsUser"] == SERVER_UID
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001}
    for service in manifests("service.yaml"):
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert mounted == claimed | {volume["name"] for volume in pod["volumes"]}
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    for name in ("disruption-budget.yaml", "network-policy.yaml"):
        (manifest,) = manifests(name)
        selector = manifest["spec"].get("podSelector") or manifest["spec"]["selector"]
        assert selector["matchLabels"].items() <= labels.items()


def test_the_example_secret_is_what_the_pod_mounts_and_the_server_reads(tmp_path: Path) -> None:
    (secret,) = manifests("secret.yaml.example")
    pod = manifests("statefulset.yaml")[0]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["secret"]["secretName"] == secret["metadata"]["name"]
    (tmp_path / "tokens").write_text(secret["stringData"]["tokens"])
    assert len(read_tokens(tmp_path / "tokens")) == 2
