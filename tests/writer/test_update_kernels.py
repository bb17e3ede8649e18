"""The update kernels load only where they are needed, and round alike on every processor."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gatherd
import gatherd_server

ROUNDING = """
import numba
import numpy as np
from gatherd.store.dtypes import DType, convert
from gatherd.store.kernels.intrinsics import store_bfloat16, store_float16

@numba.njit
def round_all(values, halves, bfloats):
    for i in range(values.size):
        store_float16(halves, 2 * i, values[i])
        store_bfloat16(bfloats, 2 * i, values[i])

rng = np.random.default_rng(0)
every_half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
ties = (every_half.view(np.uint32) | 0x1000).view(np.float32)
random = rng.integers(0, 2**32, 300_000, np.uint32)
small = (random & 0x87FFFFFF) | (rng.integers(96, 116, random.size).astype(np.uint32) << 23)
values = np.concatenate([every_half, ties, random.view(np.float32), small.view(np.float32)])
out = {}
for dtype in (DType.FLOAT16, DType.BFLOAT16):
    out[dtype] = np.zeros(values.size, np.uint16)
round_all(values, out[DType.FLOAT16].view(np.uint8), out[DType.BFLOAT16].view(np.uint8))
for dtype, got in out.items():
    bits = np.empty(values.size, dtype.storage)
    convert(values, DType.FLOAT32, bits, dtype)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(got[number], bits.view(np.uint16)[number])
    infinity = 0x7C00 if dtype is DType.FLOAT16 else 0x7F80
    assert ((got[~number] & 0x7FFF) > infinity).all()
print("equal")
"""


def run(code: str, *arguments: str, **environment: str) -> str:
    """What `code` prints in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_does_not_load_numba() -> None:
    code = "import sys, gatherd_server.training.images; print('numba' in sys.modules)"
    assert run(code) == "False"


def test_this_processor_rounds_as_numpy_does() -> None:
    assert run(ROUNDING) == "equal"


def test_a_processor_without_half_floats_rounds_as_numpy_does() -> None:
    environment = {}
    if os.uname().machine == "x86_64":
        environment = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}
    assert run(ROUNDING, **environment) == "equal"


# The files that hold, or are parts of, what a writer compiles: it compiles no more than is here.
PARTS = """
import sys
from gatherd.store.kernels import compiled
from gatherd_server.storage import mapped_rows
from gatherd_server.training import kernels
for room in (compiled, mapped_rows, kernels):
    room.warm()
for name, module in sorted(sys.modules.items()):
    parts = [type(part).__module__ for part in vars(module).values()]
    if name.startswith("gatherd") and any(part.startswith("numba.") for part in parts):
        print(name)
"""
CHANGED = """
import sys
from importlib.util import find_spec
from pathlib import Path
from gatherd_server.processes.kernel_cache import fingerprint
copies, *names = sys.argv[1:]
for name in names:
    before = fingerprint()
    path = Path(find_spec(name).origin)
    assert path.is_relative_to(copies)
    path.write_text(path.read_text() + "# changed")
    if fingerprint() == before:
        print(name)
"""


def test_a_change_to_any_kernels_source_is_seen_by_the_name_of_its_cache(tmp_path: Path) -> None:
    names = run(PARTS).splitlines()
    assert {"gatherd.store.kernels.keys", "gatherd_server.training.compiled_updates"} <= set(names)
    for package in (gatherd, gatherd_server):
        source = Path(package.__path__[0])
        shutil.copytree(source, tmp_path / source.name)
    unseen = run(CHANGED, str(tmp_path), *names, PYTHONPATH=str(tmp_path))
    assert unseen.split() == []
