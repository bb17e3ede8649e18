"""A file system that turns read-only under a server, as ext4 does when its disk fails."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import GatherdError
from support.server import RunningServer, run_cli
from support.tables import drawn_table, make_data_dir

DISK_BYTES = 128 << 20


@dataclass
class Disk:
    folder: Path
    fail: Callable[[], object]


def run(*command: str | Path) -> str:
    done = subprocess.run([*command], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a file system that fails takes root and loop devices: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An ext4 of its own. From `fail` on the kernel lets nobody write to it."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, DISK_BYTES)
    folder.mkdir()
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop,errors=remount-ro", image, folder)
    try:
        device = Path(run("findmnt", "-no", "SOURCE", folder)).name
        trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel's ext4 can't be made to fail")
        yield Disk(folder, lambda: trigger.write_text("read only"))
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_lookups_go_on_and_a_stop_is_no_traceback(disk: Disk, tmp_path: Path) -> None:
    data, log = disk.folder / "data", tmp_path / "log"
    make_data_dir(data, drawn_table("items", 100, 4))
    unix = disk.folder / "own.sock"
    with RunningServer(
        "--data-dir", data, "--workers", "2", "--unix", unix, log_path=log
    ) as server:
        with Client(server.http) as client:
            client.scatter_add("items", [1], np.ones((1, 4)))
            disk.fail()
            assert client.lookup("items", [1]).tolist() == [[1] * 4]
            # Neither has begun: it needs a new file.
            with pytest.raises(GatherdError, match="Read-only file system"):
                client.create_table("others", 10, 4)
        assert httpx.get(f"{server.http}/readyz").status_code == 200
        assert server.stop() == 0
    assert "Traceback" not in server.log
    assert "server.sock can't be deleted: Read-only file system" in server.log
    assert "own.sock can't be deleted: Read-only file system" in server.log
    done = run_cli("create", "more", "--rows", "1", "--dim", "1", "--data-dir", data, check=False)
    assert done.returncode > 1
    assert "Traceback" not in done.stderr
    assert "Read-only file system" in done.stderr
