"""Generates the committed stubs; `--check` fails when they differ from the .proto files."""

import argparse
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO_ROOT = Path(__file__).parent


def generate(out: Path) -> None:
    """Write stubs for every .proto file below this folder to `out`."""
    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTO_ROOT}",
            f"-I{well_known}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(status)


def check() -> None:
    """Exit with a message unless the committed stubs match the .proto files."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        generate(fresh_root)
        for fresh in sorted(path for path in fresh_root.rglob("*") if path.is_file()):
            committed = PROTO_ROOT / fresh.relative_to(fresh_root)
            if not committed.exists() or committed.read_bytes() != fresh.read_bytes():
                sys.exit(f"{committed} is not what its .proto file gives: run `make proto`")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        check()
    else:
        generate(PROTO_ROOT)
