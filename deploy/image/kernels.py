"""Compiles every kernel at an image's build, and shows in the image that none is compiled again.

    python kernels.py build FOLDER     # fills FOLDER for CPU_NAME and CPU_FEATURES
    python kernels.py check            # loads all as `gatherd` would; status 1 if any was compiled

Otherwise the first start of an image needs some 17 s of a core, and a folder to write to.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from gatherd_server.processes.built_kernels import MANIFEST_NAME, use_built_kernels
from gatherd_server.processes.compiling import MODULES

# The features that each level adds, as /proc/cpuinfo names them (x86-64 psABI, table 3.1).
X86_64_V2 = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
X86_64_V3 = (*X86_64_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
NEEDS = {"generic": (), "x86-64": (), "x86-64-v2": X86_64_V2, "x86-64-v3": X86_64_V3}


def main() -> None:
    """Build, load or check, as the first argument says."""
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    elif load() and sys.argv[1] == "check":
        sys.exit("kernels were compiled: the image's aren't for this processor, or not used")


def build(folder: Path) -> None:
    """Fill `folder`, in a process of its own: nothing is run, so any x86-64 processor can."""
    cpu, features = os.environ["CPU_NAME"], os.environ["CPU_FEATURES"]
    if platform.machine() != "x86_64":
        # Other machines have no named levels: use the features that all of them have.
        cpu, features = "generic", ""
    folder.mkdir()
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(folder),
    }
    subprocess.run([sys.executable, __file__, "compile"], env=environment, check=True)
    manifest = {"cpu": cpu, "features": features, "needs": NEEDS[cpu]}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest) + "\n")


def load() -> int:
    """Import every kernel; prints and returns how many were compiled for it."""
    use_built_kernels()
    from numba.core import event

    began = time.perf_counter()
    with event.install_recorder("numba:compile") as compiled:
        for module in MODULES:
            importlib.import_module(module)
    seconds = time.perf_counter() - began
    kept = os.environ.get("NUMBA_CACHE_DIR", "nowhere")
    count: int = sum(one.is_start for _, one in compiled.buffer)
    print(f"{len(MODULES)} modules of kernels in {seconds:.1f} s, {count} compiled; cache: {kept}")
    return count


if __name__ == "__main__":
    main()
