"""What builds and runs programs of other languages, and what is skipped without it."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PROTO = FOLDER.parents[1] / "proto"
# Of the package googleapis-common-protos: google/rpc/*.proto.
GOOGLEAPIS = Path(sysconfig.get_path("purelib"))
NODE = FOLDER / "node"
SECONDS = 600.0
NODE_VERSION_MIN = 20


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(*tools: str, files: tuple[Path, ...] = ()) -> pytest.MarkDecorator:
    """Skips what the tools and files, of Debian's packages, aren't there for."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    missing += [str(file) for file in files if not file.exists()]
    return pytest.mark.skipif(
        bool(missing), reason=f"no {' and no '.join(missing)}: apt-get couldn't install it"
    )


def why_no_node() -> str:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "no node or no npm: apt-get couldn't install it"
    version = run("node", "--version", cwd=NODE).strip()
    if int(re.findall(r"\d+", version)[0]) < NODE_VERSION_MIN:
        return f"node is {version}; the packages take {NODE_VERSION_MIN} and later"
    if not (NODE / "node_modules").exists():
        return "no node_modules: make clients-node puts the packages there"
    return ""


needs_node = pytest.mark.skipif(bool(why_no_node()), reason=why_no_node())
