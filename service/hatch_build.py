"""Puts the commit into wheels and sdists, where `gatherd_server/build.py` reads it.

Three sources, in this order: the file that an sdist brought along; GATHERD_COMMIT, for builds that
can't see the repository, as those of images; git, when the project's folder is the top of a
repository. Without any of them the wheel carries no commit, and `gatherd --version` says "unknown".
An editable install carries none either: it asks git when it runs.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "service/gatherd_server"


class CommitHook(BuildHookInterface[Any]):
    """Adds `commit.txt` to what is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """ValueError for a GATHERD_COMMIT that is no commit."""
        build = _module(Path(self.root, PACKAGE, "build.py"))
        if version == "editable" or Path(self.root, PACKAGE, build.COMMIT_FILE).exists():
            return
        commit = os.environ.get("GATHERD_COMMIT", "").strip()
        if commit and not build.is_commit(commit):
            raise ValueError(
                f"GATHERD_COMMIT={commit!r} is no commit: give what `git rev-parse HEAD` prints, "
                "or leave it out"
            )
        commit = commit or build.commit_of_checkout(Path(self.root))
        if commit == build.UNKNOWN:
            return
        # The builder reads it after this returns.
        self._folder = tempfile.TemporaryDirectory(prefix="gatherd-build-")
        written = Path(self._folder.name, build.COMMIT_FILE)
        written.write_text(f"{commit}\n")
        inside = "gatherd_server" if self.target_name == "wheel" else PACKAGE
        build_data["force_include"][str(written)] = f"{inside}/{build.COMMIT_FILE}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete what `initialize` wrote."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _module(path: Path) -> ModuleType:
    """The module in `path`, without its package: the build environment has no gatherd."""
    spec = importlib.util.spec_from_file_location("gatherd_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
