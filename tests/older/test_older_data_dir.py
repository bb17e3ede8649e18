"""A data dir that the release before this layout left, killed, opens as if nothing had happened.

make_fixture.py made before_the_house.tar.gz with that release, and says what is in it.
"""

import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd import Client
from gatherd.errors import PermissionDenied, RequestIdReused
from gatherd_server.access.callers import Scope
from gatherd_server.access.token_file import TokenFile
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.data_dir.verify import verify_log, verify_version
from gatherd_server.snapshots.restoring import restore
from gatherd_server.snapshots.snapshot import verify_snapshot
from gatherd_server.storage.files import Files
from gatherd_server.types import (
    OwnedKey,
    Push,
    PushResult,
    RequestId,
    SessionSequence,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer
from older.make_fixture import WORDS

FIXTURE = Path(__file__).with_name("before_the_house.tar.gz")
OWNER = "trainer"
WAIT_SECONDS = 30
# Live since before the checkpoint, and pushed to after it.
TRAINED = "halves/v000001"


@dataclass(frozen=True)
class Older:
    """A copy of the fixture's files, and what has to be found in them."""

    root: Path
    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def last_lsn(self) -> int:
        return int(self.facts["lsns"]["in the log"]["sequence"])

    def check_files(self, tables: Path, name: str) -> None:
        """Every array, slots and keys too, is byte for byte what that release made of it."""
        found = {f"{name}/{path.relative_to(tables)}" for path in tables.rglob("*.npy")}
        assert found == {key for key in self.arrays if key.startswith(f"{name}/")}
        for key in found:
            array = np.load(tables / key.partition("/")[2])
            assert array.dtype == self.arrays[key].dtype, key
            assert array.tobytes() == self.arrays[key].tobytes(), key


@pytest.fixture
def older(tmp_path: Path) -> Older:
    with tarfile.open(FIXTURE) as packed:
        packed.extractall(tmp_path, filter="data")
    with np.load(tmp_path / "arrays.npz") as arrays:
        return Older(tmp_path, json.loads((tmp_path / "facts.json").read_text()), dict(arrays))


def lose_pages(older: Older) -> None:
    """Leave a trained version as it was at the checkpoint, as a power cut may."""
    kept = older.root / "snaps/kept/tables" / TRAINED
    target = older.data / "tables" / TRAINED
    files = [path for path in kept.glob("*.npy") if "keys" not in path.name]
    assert any((target / path.name).read_bytes() != path.read_bytes() for path in files)
    for path in files:
        shutil.copy(path, target / path.name)


@pytest.mark.parametrize("power", ["stayed", "was cut"])
def test_rows_and_optimizer_state_are_what_they_were(older: Older, power: str) -> None:
    if power == "was cut":
        lose_pages(older)
    with own_data_dir(older.data) as owned:
        owned.recover()
    older.check_files(older.data / "tables", "data")


def test_lookups_of_every_version_answer_as_they_did(older: Older) -> None:
    with own_data_dir(older.data) as owned:
        owned.recover()
    with Client(f"local:{older.data}") as client:
        infos = {info.name: info for info in client.tables()}
        assert infos.keys() == older.facts["tables"].keys()
        for name, fact in older.facts["tables"].items():
            info = infos[name]
            assert (list(info.versions), info.version) == (fact["versions"], fact["live"])
            for version in info.versions:
                rows = client.lookup(name, np.arange(info.rows), version=version)
                np.testing.assert_array_equal(rows, older.arrays[f"{name} v{version}"])
        by_key = client.lookup("words", keys=list(WORDS))
        np.testing.assert_array_equal(by_key, older.arrays["words v1"])
        by_key = client.lookup("numbers", keys=np.arange(40) * 7 - 50)
        np.testing.assert_array_equal(by_key, older.arrays["numbers v2"])
        assert client.keys_of("words", [4]).tolist() == [list(WORDS)[4]]
        assert infos["numbers"].optimizer is not None
        assert infos["numbers"].optimizer["lr"] == 0.125


def test_a_retried_push_gets_its_first_answer(older: Older) -> None:
    ids, values = older.arrays["ids"], older.arrays["values"]
    session = bytes.fromhex(older.facts["session"])
    asked: dict[tuple[str, str], RequestId] = {
        ("in the checkpoint", "key"): OwnedKey("early", OWNER),
        ("in the checkpoint", "sequence"): SessionSequence(session, 1, OWNER),
        ("in the log", "key"): OwnedKey("late", OWNER),
        ("in the log", "sequence"): SessionSequence(session, 3, OWNER),
    }
    writer = Writer(older.data, Files(), WriterLimits(syncs=False))

    def push(request_id: RequestId, values: NDArray[np.float32]) -> PushResult:
        pushed = Push(UpdateOp.SCATTER_ADD, (TableUpdate("sums", ids, values),), request_id)
        return writer.submit(pushed, push_digest(pushed)).result(WAIT_SECONDS)

    try:
        for (where, kind), request_id in asked.items():
            assert push(request_id, values).lsn == older.facts["lsns"][where][kind]
            with pytest.raises(RequestIdReused):
                push(request_id, values + 1)
        assert writer.applied_lsn == older.last_lsn
        # Sequence 2 was never sent: it is a new push, and updates go on where they ended.
        assert push(SessionSequence(session, 2, OWNER), values) == PushResult(
            older.last_lsn + 1, (3,)
        )
    finally:
        writer.close()
    expected = older.arrays["sums v3"].copy()
    np.add.at(expected, ids, values)
    with Client(f"local:{older.data}") as client:
        np.testing.assert_array_equal(client.lookup("sums", np.arange(30)), expected)


def test_it_is_found_sound_after_it_was_opened_and_closed(older: Older) -> None:
    with own_data_dir(older.data) as owned:
        owned.recover()
    assert verify_log(older.data).last_lsn == older.last_lsn
    for name, fact in older.facts["tables"].items():
        for version in fact["versions"]:
            for _ in verify_version(older.data, name, version):
                pass


def test_its_snapshot_restores(older: Older) -> None:
    snapshot = older.root / "snaps/kept"
    for _ in verify_snapshot(snapshot):
        pass
    assert restore(Files(), snapshot, older.root / "restored") == older.facts["snapshot_lsn"]
    with own_data_dir(older.root / "restored") as owned:
        owned.recover()
    older.check_files(older.root / "restored/tables", "snap")


def test_its_token_file_is_read(older: Older) -> None:
    caller = TokenFile(older.root / "tokens").find(older.facts["token"].encode())
    assert caller is not None
    assert caller.grant is not None
    assert caller.grant.name == OWNER
    for scope in (Scope.READ, Scope.UPDATE, Scope.ADMIN):
        caller.check(scope, ["words"])
    with pytest.raises(PermissionDenied):
        caller.check_metrics()
