"""The folder that keeps compiled kernels from one start to the next, one for each release.

The server's kernels are in the files that match `KERNEL_FILES`, the store's in its folder
`kernels`. No file is listed by name, but a kernel in a file that doesn't match would change unseen.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

from gatherd.store.kernels import compiled

logger = logging.getLogger("gatherd.supervisor")

# Below the data dir; only numba reads it.
KERNELS_NAME = "kernels"
KERNEL_FILES = "*/compiled_*.py"
_ROOMS = Path(__file__).parent.parent


def fingerprint() -> str:
    """A hash that tells the kernels of this server and its store from another release's."""
    return compiled.fingerprint(sorted(_ROOMS.glob(KERNEL_FILES)))


def use_kernel_cache(data_dir: Path | None) -> None:
    """Tell numba, here and in the workers, where to keep compiled kernels; NUMBA_CACHE_DIR wins.

    It is the user's cache folder, or else the data dir's; never one that others can write to,
    because its contents are run. If neither can be written, every worker compiles anew (about 10
    s).
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    candidates = [user_cache / "gatherd" / "kernels"]
    if data_dir is not None:
        candidates.append(data_dir / KERNELS_NAME)
    name = fingerprint()
    for candidate in candidates:
        with suppress(OSError, RuntimeError):
            folder = candidate.expanduser() / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                os.environ["NUMBA_CACHE_DIR"] = str(folder)
                return
    logger.warning("no folder for compiled kernels can be written; set NUMBA_CACHE_DIR")
