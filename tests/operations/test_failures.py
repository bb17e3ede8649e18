"""A disk that is really full, and what else somebody has to act on, is counted, logged and told."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import DiskFull
from gatherd_server.cli.top import Scrape
from support import alerts
from support.server import RunningServer, wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 4000, 64
DISK_BYTES = 8 << 20
REFUSED_PUSHES = 200
WORKERS = 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system takes root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_counted_logged_and_told_until_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    make_data_dir(small_disk / "data", drawn_table("items", ROWS, DIM))
    ones = np.ones((ROWS, DIM), np.float32)
    with RunningServer(
        "--data-dir", small_disk / "data", "--workers", str(WORKERS), "--segment-bytes", "1048576",
        "--checkpoint-seconds", "86400", log_path=tmp_path / "log",
    ) as server:  # fmt: skip

        def updates() -> str:
            return str(httpx.get(f"{server.http}/readyz").json()["updates"])

        def scrape() -> Scrape:
            return Scrape.parse(httpx.get(f"{server.http}/metrics").text, 0.0)

        before = scrape()
        assert before.values["gatherd_errors_total"][("reason", "DISK_FULL"),] == 0
        refused = 0
        began = time.monotonic()
        with Client(server.http) as client:
            while refused < REFUSED_PUSHES:
                try:
                    client.scatter_add("items", np.arange(ROWS), ones)
                except DiskFull:
                    refused += 1
            seconds = time.monotonic() - began
            counted = "gatherd_errors_total"
            wait_until(
                lambda: scrape().total(counted, reason="DISK_FULL") == refused, "all are counted"
            )
            wait_until(
                lambda: all(updates() == "disk_full" for _ in range(4 * WORKERS)), "it is told"
            )
            seen = scrape()
            assert seen.total("gatherd_updates_up") == 0
            if alerts.promtool() is not None:
                assert alerts.fires(tmp_path, [before, seen], "GatherdDiskFull", 10) == ""
                assert alerts.fires(tmp_path, [before, seen], "GatherdUpdatesStopped", 45) == ""
            client.lookup("items", [1])
            # A line a second, and in the end one for each push that was refused.
            pattern = re.compile(
                r"ERROR .*DISK_FULL: .*the disk is full(?: \((\d+) more like it\))?"
            )

            def told() -> list[re.Match[str]]:
                return list(pattern.finditer((tmp_path / "log").read_text()))

            wait_until(
                lambda: sum(1 + int(one[1] or 0) for one in told()) == refused, "all are in the log"
            )
            assert len(told()) <= WORKERS * (seconds + 3)
            # Room, and it goes on by itself.
            subprocess.run(
                ["mount", "-o", f"remount,size={8 * DISK_BYTES}", small_disk], check=True
            )
            client.scatter_add("items", np.arange(ROWS), ones)
            wait_until(
                lambda: all(updates() == "running" for _ in range(4 * WORKERS)), "it is over"
            )


def test_a_file_that_may_not_grow_is_a_full_disk_too(tmp_path: Path) -> None:
    make_data_dir(tmp_path / "data", drawn_table("items", ROWS, DIM))
    # In units of 512 bytes: less than a file of the log, more than what else there is.
    limited = ("sh", "-c", 'ulimit -f 12288 && exec "$@"', "limited")
    with RunningServer(
        "--data-dir", tmp_path / "data", "--segment-bytes", "8388608", "--log-format", "json",
        log_path=tmp_path / "log", under=limited,
    ) as server:  # fmt: skip
        ones = np.ones((ROWS, DIM), np.float32)
        with Client(server.http) as client, pytest.raises(DiskFull, match="may not grow"):
            client.scatter_add("items", np.arange(ROWS), ones)
        assert '"reason": "DISK_FULL"' in (tmp_path / "log").read_text()
        assert httpx.get(f"{server.http}/readyz").json()["updates"] == "disk_full"
