"""Compiles every kernel ahead, in as many processes as there are cores.

`MODULES` is the one list of the modules that compile: an import of one compiles all of it, or loads
it from the cache. A server compiles what the cache lacks before it starts its first process, which
would do it one after the other. `gatherd kernels` and the image's build compile the same.

A file in the cache says that it holds all of them, so later starts needn't look. The file's name
depends on the processor, numba, Python and the modules' files, by which numba finds out what is
stale. If it is wrong, whoever misses a kernel compiles it.

Each compiler is `python -m gatherd_server.processes.compiling`: it reads a module's name from its
standard input, a line each, and writes the name when it is done. It ends when its input does.
"""

import importlib
import importlib.util
import logging
import os
import selectors
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

from gatherd_server.processes.built_kernels import ENVIRONMENT, cpu_flags

logger = logging.getLogger("gatherd.supervisor")

MODULES: Final = (
    # Those that take longest come first, so that none of them is begun last.
    "gatherd_server.wire.compiled.rows",
    "gatherd.store.kernels.keys",
    "gatherd.store.kernels.bags",
    "gatherd_server.training.compiled_optimizers",
    "gatherd_server.training.compiled_updates",
    "gatherd_server.storage.compiled_open",
    # Compiles those of text_kernel.py as well.
    "gatherd_server.loaders.fasttext_kernel",
    "gatherd_server.storage.compiled_rows",
    "gatherd.store.kernels.gather",
    # Takes in rows.py, which is compiled by then.
    "gatherd_server.wire.compiled.answering",
)
# A compiler takes some 250 MB while it works.
COMPILERS_MAX: Final = 8
# How often a compilation is asked whether it is wanted still.
LOOK_SECONDS: Final = 0.1
# How messages call it.
COMPILING: Final = "compiling kernels (once)"


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the modules are compiled."""

    done: int
    total: int


def cache_folder() -> Path | None:
    """The folder that numba's environment names for kernels, None if none can be added there.

    None can where no folder is writable, and where an image brought them.
    """
    name = os.environ.get("NUMBA_CACHE_DIR")
    if not name or name == os.environ.get(ENVIRONMENT):
        return None
    folder = Path(name)
    return folder if os.access(folder, os.W_OK) or not folder.exists() else None


def are_compiled() -> bool:
    """Whether the cache is known to hold every kernel, or none can be added to it."""
    folder = cache_folder()
    return folder is None or (folder / _mark()).exists()


def compile_kernels(is_wanted: Callable[[], bool] = lambda: True) -> Iterator[Progress]:
    """Compile every kernel that the cache lacks, and yield the progress, from 0 on.

    Ends early, and its processes with it, when `is_wanted` says so. If a module can't be compiled,
    a warning says why, and `are_compiled` stays False: whoever needs its kernels compiles them.
    """
    folder = cache_folder()
    waiting, done = list(reversed(MODULES)), 0
    yield Progress(0, len(MODULES))
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(min(len(os.sched_getaffinity(0)), COMPILERS_MAX, len(MODULES))):
            compiler = stack.enter_context(_Compiler())
            compiler.compile(waiting.pop())
            selector.register(compiler, selectors.EVENT_READ)
        while selector.get_map():
            if not is_wanted():
                return
            for key, _ in selector.select(LOOK_SECONDS):
                compiler = _compiler(key)
                if not compiler.has_compiled():
                    logger.warning(
                        "the kernels of %s can't be compiled ahead: %s",
                        compiler.module,
                        compiler.reason(),
                    )
                    return
                done += 1
                yield Progress(done, len(MODULES))
                if waiting:
                    compiler.compile(waiting.pop())
                else:
                    selector.unregister(compiler)
    if folder is not None:
        with suppress(OSError):
            (folder / _mark()).touch()


class _Compiler:
    """A process that compiles one module after the other. A context manager that ends it."""

    def __init__(self) -> None:
        self.module = ""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A Ctrl-C is for the one who waits for it.
            process_group=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def fileno(self) -> int:
        """Readable when a module is compiled, or the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def compile(self, module: str) -> None:
        """Begin with a module."""
        assert self._process.stdin is not None
        self.module = module
        with suppress(BrokenPipeError):  # then its output has ended too
            self._process.stdin.write(f"{module}\n".encode())
            self._process.stdin.flush()

    def has_compiled(self) -> bool:
        """Whether the module is compiled, once there is something to read."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip() == self.module

    def reason(self) -> str:
        """The last line that a compiler that failed wrote."""
        self._process.kill()
        _, told = self._process.communicate()
        return told.decode(errors="replace").strip().rpartition("\n")[2] or "it ended"


def _compiler(key: selectors.SelectorKey) -> _Compiler:
    assert isinstance(key.fileobj, _Compiler)
    return key.fileobj


def _mark() -> str:
    """The name of the file that tells that every kernel is there."""
    parts = [sys.version, version("numba"), *sorted(cpu_flags("/proc/cpuinfo"))]
    parts += [os.environ.get(f"NUMBA_CPU_{name}", "") for name in ("NAME", "FEATURES")]
    for module in MODULES:
        found = importlib.util.find_spec(module)
        if found is not None and found.origin is not None:
            state = Path(found.origin).stat()
            parts += [found.origin, str(state.st_mtime_ns), str(state.st_size)]
    return f"compiled-{zlib.crc32(chr(0).join(parts).encode()):08x}"


def _main() -> None:
    for line in sys.stdin:
        module = line.strip()
        importlib.import_module(module)
        print(module, flush=True)


if __name__ == "__main__":
    _main()
