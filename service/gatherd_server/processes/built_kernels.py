"""Kernels that were compiled when an image was built, for a processor that most machines have.

A folder of them has `built.json` beside numba's own files:

    {"cpu": "x86-64-v3", "features": "+avx2,+fma,+f16c", "needs": ["avx2", "fma", …]}

`needs` are flags of /proc/cpuinfo. If the processor has them all, this process and its children
load the kernels from there and compile nothing; the folder may be read-only. If one is missing, the
kernels are compiled for the actual processor, as if the folder didn't exist: once if a cache can be
kept (kernel_cache.py), else in every process.

Imports nothing of numba, which reads its environment at its first import: this must come before.
"""

import json
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = "GATHERD_BUILT_KERNELS"
MANIFEST_NAME: Final = "built.json"
_LOCATOR: Final = "gatherd_server.processes.sealed_cache.SealedCache"


def use_built_kernels(
    environment: MutableMapping[str, str] | None = None, cpuinfo: str = "/proc/cpuinfo"
) -> None:
    """Point numba to the folder that GATHERD_BUILT_KERNELS names, if its kernels fit the processor.

    If they don't, a line on standard error says so. A NUMBA_CACHE_DIR that is set wins.
    """
    environment = os.environ if environment is None else environment
    folder = environment.get(ENVIRONMENT)
    if not folder or "NUMBA_CACHE_DIR" in environment:
        return
    try:
        built = json.loads(Path(folder, MANIFEST_NAME).read_text("utf-8"))
        name, features, needs = built["cpu"], built["features"], built["needs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        _tell(f"{ENVIRONMENT}={folder} holds no built kernels ({error!r})")
        return
    missing = [flag for flag in needs if flag not in cpu_flags(cpuinfo)]
    if missing:
        _tell(f"the built kernels are for {name}, and this processor lacks {', '.join(missing)}")
        return
    environment["NUMBA_CPU_NAME"] = name
    environment["NUMBA_CPU_FEATURES"] = features
    environment["NUMBA_CACHE_DIR"] = folder
    environment["NUMBA_CACHE_LOCATOR_CLASSES"] = _LOCATOR


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The first processor's features, in the kernel's words; empty if the kernel lists none."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def _tell(what: str) -> None:
    # Before there is a log.
    print(f"gatherd: {what}; kernels are compiled anew", file=sys.stderr)
