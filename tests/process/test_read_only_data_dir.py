"""A data dir on a read-only mount is served as `local:` reads it; nothing is changed there."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import FailedPrecondition
from support.server import RunningServer, run_cli

# Bind-mounts $1 at $2 read-only, in a mount namespace of its own, and becomes the command behind.
MOUNTED = (
    'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" || exit 9; shift 2; exec "$@"',
    "sh",
)
UNSHARE = ("unshare", "--map-root-user", "--mount", "sh", "-c", *MOUNTED)


@pytest.fixture
def mount(tmp_path: Path) -> tuple[str | Path, ...]:
    """What a command runs under to see `tmp_path`/data read-only at `tmp_path`/mount."""
    for name in ("data", "mount"):
        (tmp_path / name).mkdir()
    under = (*UNSHARE, tmp_path / "data", tmp_path / "mount")
    try:
        tried = subprocess.run([*under, "touch", tmp_path / "mount" / "x"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here, so nothing can be mounted read-only")
    if b"Read-only file system" not in tried.stderr:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.decode(errors='replace')}")
    return under


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_mounted_read_only_is_served_and_follows_its_writer(
    tmp_path: Path, mount: tuple[str | Path, ...], workers: str
) -> None:
    data_dir, read_only = tmp_path / "data", tmp_path / "mount"
    create = ("create", "items", "--rows", "100", "--dim", "4", "--init", "normal")
    run_cli(*create, "--optimizer", "sgd", "--data-dir", data_dir)
    rows = np.load(data_dir / "tables/items/v000001/weights.npy")
    with RunningServer("--data-dir", read_only, "--workers", workers, under=mount) as reader:
        with Client(reader.http) as client:
            np.testing.assert_array_equal(client.lookup("items", [3, 4]), rows[[3, 4]])
            for change in (
                lambda: client.scatter_add("items", [3], np.ones((1, 4), np.float32)),
                lambda: client.create_table("others", 10, 4),
                client.snapshot,
            ):
                with pytest.raises(FailedPrecondition, match="on a read-only file system"):
                    change()
            np.testing.assert_array_equal(client.lookup("items", [3, 4]), rows[[3, 4]])
            with RunningServer("--data-dir", data_dir) as owner, Client(owner.http) as trainer:
                trainer.scatter_add("items", [3], np.ones((1, 4), np.float32))
                np.testing.assert_array_equal(client.lookup("items", [3]), rows[[3]] + 1)
        assert reader.stop() == 0
    assert "Traceback" not in reader.log
    assert "is on a read-only file system" in reader.log
