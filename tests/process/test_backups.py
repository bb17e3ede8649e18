"""A server that copies its snapshots away: all is killed, the disk gone, and back from the store.

The oracle is the crash suite's: every push that was answered, one after the other by its LSN, and
then every byte of rows and optimizer state has to be the same.
"""

import json
import random
import re
import shutil
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from crash.oracle import Acknowledged, Oracle
from crash.siege import make_tables
from crash.workload import Way, drawn_push, key_of
from gatherd import Client
from gatherd.errors import GatherdError
from gatherd.store.catalog import read_catalog
from support.cli import invoke
from support.server import RunningServer, wait_until
from support.tables import drawn_table, make_data_dir

PUSHERS = 3
PAUSE_SECONDS = 0.01


class Pusher(threading.Thread):
    """Pushes one drawn push after the other until the server is gone."""

    def __init__(self, first: int, url: str) -> None:
        super().__init__(daemon=True)
        self.done: list[Acknowledged] = []
        self.failure: BaseException | None = None
        self.ends = threading.Event()
        self._first = first
        self._url = url

    def run(self) -> None:
        try:
            with Client(self._url, timeout=60, retries=0) as client:
                for number in range(self._first, self._first + 10**6):
                    push = drawn_push(number)
                    if push.way is Way.REFUSED:
                        continue
                    lsn, versions = push.send(client, key_of(number), 60)
                    self.done.append(Acknowledged(number, lsn, versions))
                    time.sleep(PAUSE_SECONDS)
        except GatherdError as error:
            if not self.ends.is_set():
                self.failure = error


def metric(url: str, name: str) -> float:
    """One sample of `/metrics`, 0 when it isn't told."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


COPIED = 'gatherd_backups_total{outcome="copied"}'
FAILED = 'gatherd_backups_total{outcome="failed"}'
TAKEN_AT = "gatherd_backup_timestamp_seconds"


@pytest.mark.timeout(240)
def test_after_a_kill_and_the_loss_of_the_disk_the_newest_backup_is_all_there(
    tmp_path: Path,
) -> None:
    data, folder, url = tmp_path / "data", tmp_path / "s", f"local://{tmp_path}/store"
    make_tables(data)
    oracle = Oracle.begin(data)
    first_lsn = len(read_catalog(data).tables)
    options = ("--workers", "2", "--snapshot-dir", folder, "--snapshot-seconds", "1",
               "--snapshot-keep", "1", "--backup-url", url, "--backup-keep", "2",
               "--segment-bytes", "65536", "--checkpoint-seconds", "0.3")  # fmt: skip
    with RunningServer("--data-dir", data, *options, log_path=tmp_path / "log") as server:
        urls = [server.http, server.grpc, f"local:{data}"]
        pushers = [Pusher(10**6 * number, url) for number, url in enumerate(urls, 1)]
        for pusher in pushers:
            pusher.start()
        wait_until(lambda: sum(len(one.done) for one in pushers) > 60, "updates are pushed", 120)
        copied = metric(server.http, COPIED)
        wait_until(lambda: metric(server.http, COPIED) >= copied + 3, "backups are made", 120)
        assert time.time() - metric(server.http, TAKEN_AT) < 120
        for pusher in pushers:
            pusher.ends.set()
        server.kill()
    for pusher in pushers:
        pusher.join(60)
        assert pusher.failure is None
    shutil.rmtree(data)
    shutil.rmtree(folder)

    shown = json.loads(invoke("backups", url, "--json", "--verify").stdout)
    # The newest of each round, but for what was under way at the kill.
    assert 2 <= len(shown["backups"]) <= 3
    assert shown["damaged"] == {}
    lsn = max(one["lsn"] for one in shown["backups"])
    told = invoke("restore", url, "--newest", "--data-dir", data).stdout
    assert told.endswith(f"as of LSN {lsn}\n")

    pushed = sorted((done for one in pushers for done in one.done), key=lambda done: done.lsn)
    inside = [done for done in pushed if done.lsn <= lsn]
    after = [done for done in pushed if done.lsn > lsn]
    assert [done.lsn for done in inside] == list(range(first_lsn + 1, lsn + 1))
    assert len(inside) > 20
    assert after
    for done in inside:
        oracle.push(done)
    assert oracle.check(data, f"restored, LSN {lsn}") == first_lsn

    with RunningServer("--data-dir", data) as server, Client(server.http) as client:
        for done in [*inside[-20:], *random.Random(1).sample(inside, 20)]:
            again = drawn_push(done.number).send(client, key_of(done.number), 60)
            assert again == (done.lsn, done.versions)
        # What the backup hasn't is new to it, and done, once.
        for done in after[:5]:
            push = drawn_push(done.number)
            first = push.send(client, key_of(done.number), 60)
            assert first[0] > lsn
            assert push.send(client, key_of(done.number), 60) == first
            oracle.push(Acknowledged(done.number, *first))
    oracle.check(data, "pushed again")


@pytest.mark.timeout(120)
def test_a_store_that_fails_is_told_and_holds_up_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_data_dir(data, drawn_table("t", 10, 4))
    # A file where the folder is to be.
    (tmp_path / "disk").write_text("not mounted")
    url = f"file://{tmp_path}/disk/store"
    options = ("--data-dir", data, "--snapshot-dir", tmp_path / "s", "--backup-url", url)
    log = tmp_path / "log"
    with (
        RunningServer(*options, log_path=log) as server,
        Client(server.http, timeout=30) as client,
    ):
        assert client.scatter_add("t", [1], np.ones((1, 4))).lsn == 2
        client.snapshot("monday")
        wait_until(lambda: metric(server.http, FAILED) >= 1, "the failure is counted")
        assert metric(server.http, TAKEN_AT) == 0
        assert metric(server.http, COPIED) == 0
        assert client.scatter_add("t", [1], np.ones((1, 4))).lsn == 3
        assert httpx.get(f"{server.http}/readyz").json()["updates"] == "running"
        told = log.read_text()
        assert f"the backup to {url} failed" in told or f"{tmp_path}/disk/store" in told
        assert "next try in 15 s" in told
        (tmp_path / "disk").unlink()
        client.snapshot("tuesday")
        wait_until(lambda: metric(server.http, COPIED) >= 2, "both are copied")
        assert time.time() - metric(server.http, TAKEN_AT) < 120
    names = [path.name for path in sorted((tmp_path / "disk/store").iterdir())]
    assert names == ["monday", "tuesday"]
    # A folder's backup is a snapshot as it is.
    assert invoke("verify", "--data-dir", tmp_path / "disk/store/tuesday").returncode == 0


def test_settings_that_can_never_copy_anything_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_data_dir(data, drawn_table("t", 10, 4))
    snapshots = ("--snapshot-dir", tmp_path / "s")
    for options, told in (
        (("--backup-url", "s3://b/x"), "backup_url needs data_dir and snapshot_dir"),
        ((*snapshots, "--backup-url", "memory://b/x"), "is gone with its process"),
        ((*snapshots, "--backup-url", "s3://"), "names no place"),
    ):
        done = invoke("serve", "--data-dir", data, *options, check=False)
        assert done.returncode > 1
        assert told in done.stderr
