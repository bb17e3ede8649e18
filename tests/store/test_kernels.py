"""The kernels load only where they are needed, and from wherever they may be cached."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gatherd

CLIENT = Path(gatherd.__file__).parent

# The smallest of them; the others are made in the same way.
WARM = """
from gatherd.store.kernels import gather
print(sum(gather.gather.stats.cache_hits.values()))
"""


def run(code: str, root: Path = CLIENT.parent, **environment: str) -> str:
    """What `code` prints in a process of its own that imports gatherd from `root`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A folder with a copy of the package that can't be written to, not even by root."""
    root = tmp_path / "installed"
    shutil.copytree(CLIENT, root / "gatherd", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "gatherd/store/__pycache__").write_text("not a folder")
    return root


def test_import_does_not_load_numba() -> None:
    code = "import sys, gatherd, gatherd.store.table; print('numba' in sys.modules)"
    assert run(code) == "False"


def test_without_numba_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["numba"] = None
from gatherd.errors import Unimplemented
from gatherd.store.kernels import compiled
try:
    compiled.warm()
except Unimplemented as error:
    print(error)
"""
    assert "pip install 'gatherd[local]'" in run(code)


def test_a_read_only_install_caches_where_it_is_told(sealed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run(WARM, sealed, NUMBA_CACHE_DIR=str(cache)) == "0"
    assert run(WARM, sealed, NUMBA_CACHE_DIR=str(cache)) == "1"
    for index in cache.rglob("*.nbi"):
        index.write_bytes(index.read_bytes()[:20])
    # A damaged cache is as none.
    assert run(WARM, sealed, NUMBA_CACHE_DIR=str(cache)) == "0"


def test_without_a_place_to_cache_the_kernels_are_compiled(sealed: Path) -> None:
    nowhere = "/dev/null/nowhere"
    places = {"NUMBA_CACHE_DIR": nowhere, "HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    assert run(WARM, sealed, **places) == "0"


def test_a_processor_without_half_floats_pools_them_all_the_same(tmp_path: Path) -> None:
    code = """
import numpy as np
from gatherd.store.bags import pool
from gatherd.store.query import Pooling
rows = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, -1)
out = np.empty((1, 65536), np.float32)
one = np.zeros(1, np.int64)
pool(rows, one, one, None, Pooling.MAX, np.zeros(65536, np.float32), out)
np.testing.assert_array_equal(out, rows.astype(np.float32))
print("equal")
"""
    # Not this processor's cache, which the test would fill anew.
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    if os.uname().machine == "x86_64":
        environment |= {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}
    assert run(code, CLIENT.parent, **environment) == "equal"
