"""`gatherd info`, `keys`, `ping`, `versions delete`, `snapshots` and `token --list`."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gatherd import AsyncClient, Client
from support.cli import invoke
from support.server import RunningServer

WORDS = ["king", "queen", "kings", "ka\x1b[31mt", "kitten"]


@dataclass(frozen=True, slots=True)
class Place:
    """A server, its data dir, and its folder of snapshots."""

    server: RunningServer
    data_dir: Path
    folder: Path

    @property
    def urls(self) -> list[tuple[str, str]]:
        """Each way to address it."""
        return [
            ("--url", self.server.http),
            ("--url", self.server.grpc),
            ("--data-dir", str(self.data_dir)),
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    data, folder = root / "data", root / "snapshots"
    text = "".join(f"{word} {row} {row + 1}\n" for row, word in enumerate(WORDS))
    (root / "words.txt").write_text(text)
    invoke("import", "words", root / "words.txt", "--optimizer", "sgd", "--data-dir", data)
    np.save(root / "rows.npy", np.ones((3, 2), np.float32))
    invoke("import", "plain", root / "rows.npy", "--data-dir", data)
    with RunningServer("--data-dir", data, "--snapshot-dir", folder) as server:
        yield Place(server, data, folder)


def test_keys_are_printed_with_their_ids(place: Place) -> None:
    for target in place.urls:
        shown = invoke("keys", "words", *target)
        assert shown.stdout == "0\tking\n1\tqueen\n2\tkings\n3\tka\\x1b[31mt\n4\tkitten\n"
        assert shown.stderr == ""
        shown = invoke("keys", "words", "--prefix", "ki", "--limit", "2", *target)
        assert shown.stdout == "0\tking\n2\tkings\n"
        assert shown.stderr == "more keys may follow: --start 3\n"
        rest = ("--prefix", "ki", "--start", "3", "--json")
        assert json.loads(invoke("keys", "words", *rest, *target).stdout) == {
            "keys": ["kitten"],
            "ids": [4],
            "next": None,
            "version": 1,
        }
        done = invoke("keys", "plain", *target, check=False)
        assert "table 'plain' has no keys" in done.stderr


def test_info_tells_everything_of_a_table(place: Place) -> None:
    for target in place.urls:
        shown = json.loads(invoke("info", "words", "--json", *target).stdout)
        files = shown.pop("files", None)
        assert (files is not None) == (target[0] == "--data-dir")
        with Client(place.server.http) as client:
            known = client.table("words")
        assert (shown["rows"], shown["key_kind"]) == (len(WORDS), "bytes")
        assert shown["optimizer"] == known.optimizer
        lines = invoke("info", "words", *target).stdout.splitlines()
        assert lines[0] == "words"
        assert lines[1].startswith("  rows       5 of 2 float32, 0.0 MB, ")
        assert any(line.startswith("  updates    by sgd lr=") for line in lines)
    assert files["origin"] == {"imported": [str(place.data_dir.parent / "words.txt")]}
    folder = place.data_dir / "tables/words/v000001"
    taken = sum(path.stat().st_size for path in folder.iterdir())
    assert files["versions"] == {"1": {"path": str(folder), "bytes": taken}}
    done = invoke("info", "word", *place.urls[0], check=False)
    assert done.returncode == 4
    assert "did you mean 'words'?" in done.stderr


def test_ping_tells_version_and_state_or_that_nobody_is_there(place: Place, tmp_path: Path) -> None:
    with Client(place.server.http) as client:
        known = client.ping()
    for target in place.urls:
        shown = json.loads(invoke("ping", "--json", *target).stdout)
        assert 0 < shown.pop("seconds") < 60
        assert shown == {
            "version": known.version,
            "commit": known.commit,
            "ready": True,
            "updates": "running",
        }
        line = invoke("ping", *target).stdout
        assert f"ready, updates running, gatherd {known.version} (commit {known.commit})" in line
    assert invoke("ping", "--url", "http://127.0.0.1:1", check=False).returncode == 3
    invoke("create", "t", "--rows", "1", "--dim", "1", "--data-dir", tmp_path)
    done = invoke("ping", "--data-dir", tmp_path, check=False)
    assert done.returncode == 3
    assert "no server runs on data dir" in done.stderr


def test_a_superseded_version_is_deleted_and_no_other(place: Place) -> None:
    for number, target in enumerate(place.urls):
        name = f"t{number}"
        invoke("create", name, "--rows", "3", "--dim", "2", *place.urls[2])
        for _ in range(2):
            invoke("publish", name, *target)
        folder = place.data_dir / "tables" / name
        assert invoke("versions", name, *target).stdout == "1\n2\n3  (live)\n"
        told = invoke("versions", "delete", name, "1", "--yes", *target).stdout
        assert told.startswith(f"{name}: version 1 is deleted, LSN ")
        assert sorted(path.name for path in folder.iterdir()) == ["v000002", "v000003"]
        assert invoke("versions", "list", name, *target).stdout == "2\n3  (live)\n"
        invoke("rollback", name, *target)
        refused = {
            "1": (4, f"table '{name}' has no version 1; it has 2, 3"),
            "2": (5, f"version 2 of table '{name}' is live"),
            "3": (5, "it has the highest number, and no number is given twice"),
        }
        for version, (status, message) in refused.items():
            done = invoke("versions", "delete", name, version, "--yes", *target, check=False)
            assert (done.returncode, message in done.stderr) == (status, True), done.stderr
        invoke("publish", name, *target)
        invoke("versions", "delete", name, "3", "--yes", *target)
        with Client(place.server.http) as client:
            assert client.versions(name) == (2, 4)


def test_snapshots_are_listed_and_deleted(place: Place, tmp_path: Path) -> None:
    for number, target in enumerate(place.urls):
        name = f"s{number}"
        invoke("snapshot", name, *target)
        shown = json.loads(invoke("snapshots", "--json", *target).stdout)["snapshots"]
        assert [one["name"] for one in shown] == [name]
        assert shown[0]["path"] == str(place.folder / name)
        assert invoke("snapshots", "list", *target).stdout.startswith(f"{name}: LSN ")
        assert invoke("snapshots", "delete", name, "--yes", *target).stdout == f"{name}: deleted\n"
        assert list(place.folder.iterdir()) == []
        done = invoke("snapshots", "delete", name, "--yes", *target, check=False)
        assert (done.returncode, f"no snapshot '{name}'" in done.stderr) == (4, True)


def test_the_awaited_client_has_them_too(place: Place) -> None:
    async def asked(url: str) -> None:
        async with AsyncClient(url, timeout=60) as client:
            assert (await client.ping()).ready
            name = f"awaited-{url.partition(':')[0]}"
            await client.create_table(name, 2, 1)
            await client.publish(name)
            assert (await client.delete_version(name, 1)).version == 2
            made = await client.snapshot(name)
            assert [one.path for one in await client.snapshots()] == [made.path]
            await client.delete_snapshot(name)
            assert await client.snapshots() == []
            found = [key async for key, _ in client.iter_keys("words", prefix="ki")]
            assert found == ["king", "kings", "kitten"]

    for url in (place.server.http, place.server.grpc, f"local:{place.data_dir}"):
        asyncio.run(asked(url))


def test_without_a_server_snapshots_are_those_in_a_folder(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "snapshots"
    place = ("--data-dir", data)
    invoke("create", "t", "--rows", "1", "--dim", "1", *place)
    for name in ("one", "two"):
        invoke("snapshot", name, "--to", folder, *place)
    done = invoke("snapshots", *place, check=False)
    assert "say by --in which folder has its snapshots" in done.stderr
    shown = invoke("snapshots", "--in", folder).stdout.splitlines()
    assert sorted(line.partition(":")[0] for line in shown) == ["one", "two"]
    invoke("snapshots", "delete", "one", "--yes", "--in", folder)
    (folder / "two" / "snapshot.json").write_text("{}")
    done = invoke("snapshots", "--in", folder, check=False)
    assert done.returncode == 6
    assert "two: " in done.stderr
    done = invoke("snapshots", "--in", tmp_path / "none", check=False)
    assert "isn't a folder of snapshots" in done.stderr


def test_tokens_are_listed_without_what_is_secret(tmp_path: Path) -> None:
    file = ("--tokens", tmp_path / "tokens")
    secret = invoke("token", "ranker", "--scope", "read", "--table", "items*", *file).stdout.strip()
    limits = ("--rate", "10", "--concurrency", "3")
    scopes = ("--scope", "read", "--scope", "update")
    invoke("token", "trainer", *scopes, "--table", "a", "--table", "b", *limits, *file)
    shown = invoke("token", "--list", *file).stdout
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["ranker", "read", "-", "-", "items*"],
        ["trainer", "read,update", "10/s", "3", "a", "b"],
    ]
    listed = invoke("token", "--list", "--json", *file).stdout
    assert json.loads(listed)["tokens"][1] == {
        "name": "trainer",
        "scopes": ["read", "update"],
        "tables": ["a", "b"],
        "rate": 10.0,
        "concurrency": 3,
    }
    hashes = [json.loads(line)["sha256"] for line in (tmp_path / "tokens").read_text().splitlines()]
    for hidden in (secret, *hashes):
        assert hidden not in shown + listed
    for wrong in (("ranker", "--list"), ("--list", "--revoke"), ("--json",), ()):
        assert invoke("token", *wrong, *file, check=False).returncode == 2
    assert invoke("token", "--list", "--tokens", tmp_path / "none", check=False).returncode != 0
