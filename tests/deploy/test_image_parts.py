"""What the image is made of besides the package: built kernels and its health check."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.conftest import Deployed
from gatherd_server.processes.built_kernels import cpu_flags, use_built_kernels

ROOT = Path(__file__).parent.parent.parent
HEALTHCHECK = ROOT / "deploy/image/healthcheck.py"

# A temporary file can't be made on a read-only file system; root is refused nowhere else. numba's
# own locator makes one.
LOAD = """
import errno, tempfile
def read_only(*args, **kwargs):
    raise OSError(errno.EROFS, "Read-only file system")
tempfile.TemporaryFile = read_only
from gatherd_server.processes.built_kernels import use_built_kernels
use_built_kernels()
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    import gatherd.store.kernels.gather
print(sum(one.is_start for _, one in compiled.buffer))
"""


def run(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One kernel, compiled as the image's build does it, for a processor that all have."""
    folder = tmp_path_factory.mktemp("built")
    name, features = ("x86-64", "+sse2") if os.uname().machine == "x86_64" else ("generic", "")
    run(
        "import gatherd.store.kernels.gather",
        NUMBA_CACHE_DIR=str(folder),
        NUMBA_CPU_NAME=name,
        NUMBA_CPU_FEATURES=features,
    )
    (folder / "built.json").write_text(json.dumps({"cpu": name, "features": features, "needs": []}))
    return folder


def test_built_kernels_are_loaded_where_nothing_can_be_written(built: Path) -> None:
    assert run(LOAD, GATHERD_BUILT_KERNELS=str(built)) == "0"


def test_the_command_uses_them(built: Path) -> None:
    code = (
        "import os, sys; sys.argv = ['gatherd', '--help']\n"
        "from gatherd_server.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(os.environ['NUMBA_CACHE_DIR'])"
    )
    assert run(code, GATHERD_BUILT_KERNELS=str(built)).endswith(str(built))


def test_a_processor_that_lacks_what_they_need_compiles_anew(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = {"cpu": "x86-64-v3", "features": "+avx2", "needs": ["sse4_2", "avx2", "fma"]}
    (tmp_path / "built.json").write_text(json.dumps(manifest))
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx\n\nprocessor\t: 1\n")
    environment = {"GATHERD_BUILT_KERNELS": str(tmp_path)}
    use_built_kernels(environment, str(cpuinfo))
    assert environment == {"GATHERD_BUILT_KERNELS": str(tmp_path)}
    assert "are for x86-64-v3, and this processor lacks avx2, fma" in capsys.readouterr().err


def test_a_processor_that_has_it_all_uses_them(tmp_path: Path) -> None:
    manifest = {"cpu": "x86-64-v3", "features": "+avx2", "needs": ["avx2"]}
    (tmp_path / "built.json").write_text(json.dumps(manifest))
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx2\n")
    environment = {"GATHERD_BUILT_KERNELS": str(tmp_path)}
    use_built_kernels(environment, str(cpuinfo))
    assert environment["NUMBA_CPU_NAME"] == "x86-64-v3"
    assert environment["NUMBA_CPU_FEATURES"] == "+avx2"
    assert environment["NUMBA_CACHE_DIR"] == str(tmp_path)


def test_a_folder_of_ones_own_wins(built: Path) -> None:
    environment = {"GATHERD_BUILT_KERNELS": str(built), "NUMBA_CACHE_DIR": "/own"}
    use_built_kernels(environment)
    assert environment["NUMBA_CACHE_DIR"] == "/own"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"cpu": "x86-64-v3"}'])
def test_a_folder_without_a_manifest_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tmp_path / "built.json").write_text(damage)
    environment = {"GATHERD_BUILT_KERNELS": str(tmp_path)}
    use_built_kernels(environment)
    assert "NUMBA_CACHE_DIR" not in environment
    assert "holds no built kernels" in capsys.readouterr().err


def test_a_kernel_that_tells_no_flags_has_none(tmp_path: Path) -> None:
    assert cpu_flags(str(tmp_path / "absent")) == frozenset()


def check(*path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(HEALTHCHECK), *path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_health_check_needs_no_token(deployed: Deployed) -> None:
    done = check(GATHERD_DATA_DIR=str(deployed.data_dir))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "ready"


@pytest.mark.parametrize(
    ("path", "told"), [("/readyz", {"ready"}), ("/healthz", {"alive"}), ("/metrics", set())]
)
def test_the_health_check_is_a_probe_too(deployed: Deployed, path: str, told: set[str]) -> None:
    done = check(path, GATHERD_DATA_DIR=str(deployed.data_dir))
    assert (done.returncode == 0) == bool(told)
    if told:
        assert {json.loads(done.stdout)["status"]} == told


def test_the_health_check_asks_the_port_of_a_server_without_a_data_dir(
    deployed: Deployed,
) -> None:
    done = check(GATHERD_HTTP=deployed.server.http.removeprefix("http://"))
    assert done.returncode == 0, done.stderr


def test_the_health_check_asks_the_port_where_the_data_dir_has_no_socket(
    deployed: Deployed, tmp_path: Path
) -> None:
    address = deployed.server.http.removeprefix("http://")
    done = check(GATHERD_DATA_DIR=str(tmp_path), GATHERD_HTTP=address)
    assert done.returncode == 0, done.stderr


def test_the_health_check_fails_when_nobody_is_there(tmp_path: Path) -> None:
    done = check(GATHERD_DATA_DIR=str(tmp_path), GATHERD_HTTP="127.0.0.1:1")
    assert done.returncode == 1
    assert "not reached" in done.stderr
