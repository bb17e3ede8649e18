"""Each sync there is, taken away: a power cut then loses something that was acknowledged.

The cuts were found by missing.py, which finds others when the code changes.
"""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gatherd_server
from durability.missing import Cut, Labels, labels_of, shown
from durability.power import THROUGH
from durability.scripts import SCRIPTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "durability.md"
PRODUCT = Path(gatherd_server.__file__).parent
SYNCING = {
    "sync",
    "sync_path",
    "sync_data",
    "sync_dir",
    "msync",
    "write_new",
    "replace",
    "prepare",
    "put",
    "rename",
    "make_dirs",
    "create_allocated",
    "put_reserved",
}
"""The methods of the seam that sync, unless they are told not to."""

OUTSIDE = {
    "exporting.export", "exporting.finish",
    "store.put", "store.seal", "store.remove", "fetching.fetch",
}  # fmt: skip
"""What syncs a file that isn't in a data dir: an export or a backup, which can be made again, and
one that is made of a backup just as of a snapshot."""

SEAM = "storage/files.py"

NEAR_CALLS = 30

SHOWN: dict[str, Cut] = {
    "catalog_changes._clone: name of table": Cut("grown", 0, 40, 0),
    "open_table_writer.write_rows: seq": Cut("open tables", 0, 53, 0),
    "open_table_writer._write_sparse: slots": Cut("open tables", 1, 58, 0),
    "open_table_writer._write_sparse: weights": Cut("open tables", 0, 64, 0),
    "freezing.freeze: name of keys.index": Cut("open tables", 0, 4, 29),
    "freezing.freeze: keys.index": Cut("open tables", 0, 5, 2),
    "writer._checkpoint: stamps.npy": Cut("open tables", 1, 6, 0),
    "writer._checkpoint: keys.heap": Cut("open tables", 1, 6, 0),
    "writer._checkpoint: keys": Cut("open tables", 1, 6, 0),
    "writer._checkpoint: counts.npy": Cut("open tables", 1, 6, 0),
    "staging.finish: stamps.npy": Cut("open tables", 1, 10, 0),
    "staging.finish: keys.heap": Cut("open tables", 1, 8, 0),
    "staging.finish: keys": Cut("open tables", 1, 12, 0),
    "staging.finish: counts.npy": Cut("open tables", 1, 10, 0),
    "snapshot.sync_tree: stamps.npy": Cut("open tables", 1, 14, 0),
    "snapshot.sync_tree: keys.index": Cut("open tables", 1, 18, 0),
    "snapshot.sync_tree: keys.heap": Cut("open tables", 1, 18, 0),
    "snapshot.sync_tree: counts.npy": Cut("open tables", 1, 18, 2),
    "open_table_writer._write_sparse: stamps.npy": Cut("open tables", 0, 50, 0),
    "open_table_writer._write_sparse: keys.heap": Cut("open tables", 0, 44, 0),
    "open_table_writer._write_sparse: keys": Cut("open tables", 0, 50, 0),
    "open_table_writer._write_sparse: counts.npy": Cut("open tables", 0, 44, 0),
    "catalog_changes._place: name of staged folder": Cut("tables", 0, 12, 6),
    "catalog_changes._place: name of table": Cut("tables", 0, 15, 3),
    "catalog_changes._place: name of tables": Cut("tables", 0, 16, 3),
    "catalog_changes._place: name of version": Cut("tables", 0, 13, 3),
    "catalog_writer.init_data_dir: catalog.json": Cut("tables", 0, 2, 2),
    "catalog_writer.init_data_dir: control": Cut("tables", 0, 2, 2),
    "catalog_writer.init_data_dir: name of catalog.json": Cut("tables", 0, 1, 0),
    "catalog_writer.init_data_dir: name of control": Cut("tables", 0, 4, 13),
    "control_writer.close: control": Cut("unsynced", 0, 1, 0),
    "control_writer.open: control": Cut("unsynced", 1, 12, 0),
    "carrying.sync: seq": Cut("grown", 3, 8, 14),
    "carrying.sync: slots": Cut("grown", 1, 7, 0),
    "carrying.sync: weights": Cut("grown", 1, 9, 0),
    "freezing.freeze: frozen.json": Cut("versions", 0, 2, 2),
    "freezing.thaw: names in version": Cut("versions", 0, 6, 4),
    "key_index_writer.finish: keys": Cut("tables", 2, 31, 6),
    "key_index_writer.finish: keys.json": Cut("tables", 0, 29, 5),
    "key_index_writer.rebuild_slots: keys.json": Cut("description of keys mended", 0, 3, 0),
    "key_index_writer.rebuild_slots: name of keys": Cut("slots of keys mended", 0, 1, 0),
    "key_index_writer.rebuild_slots: name of keys.json": Cut("description of keys mended", 0, 1, 0),
    "owning.own_data_dir: name of data": Cut("tables", 0, 9, 0),
    "recovery._make_durable: segment": Cut("killed before the log is synced", 0, 10, 0),
    "recovery.recover: catalog.json": Cut("killed before the catalog is replaced", 0, 2, 2),
    "recovery.recover: name of catalog.json": Cut(
        "killed before the catalog is replaced", 0, 28, 0
    ),
    "recovery.recover: names in data": Cut("killed before the catalog's name is synced", 0, 28, 0),
    "restoring._copy_contents: catalog.json": Cut("snapshots", 0, 1, 2),
    "restoring._copy_contents: name of catalog.json": Cut("snapshots", 0, 1, 0),
    "restoring._copy_contents: names in restored data dir": Cut("snapshots", 0, 4, 13),
    "restoring.restore: name of restored data dir": Cut("snapshots", 0, 55, 0),
    "slots._write_slot: slots": Cut("tables", 2, 24, 0),
    "snapshot._drop: name of partial snapshot": Cut("dropped", 0, 2, 6),
    "snapshot.sync_tree: catalog.json": Cut("snapshots", 0, 20, 0),
    "snapshot.sync_tree: checkpoint": Cut("snapshots", 0, 5, 0),
    "snapshot.sync_tree: control": Cut("snapshots", 0, 19, 0),
    "snapshot.sync_tree: default": Cut("snapshots", 0, 17, 0),
    "snapshot.sync_tree: keys": Cut("snapshots", 2, 13, 0),
    "snapshot.sync_tree: keys.json": Cut("snapshots", 0, 15, 0),
    "snapshot.sync_tree: manifest.json": Cut("snapshots", 0, 12, 0),
    "snapshot.sync_tree: names in partial snapshot": Cut("snapshots", 0, 3, 0),
    "snapshot.sync_tree: names in table": Cut("snapshots", 0, 7, 0),
    "snapshot.sync_tree: names in tables": Cut("snapshots", 0, 6, 0),
    "snapshot.sync_tree: names in version": Cut("snapshots", 0, 8, 0),
    "snapshot.sync_tree: names in wal": Cut("snapshots", 0, 4, 0),
    "snapshot.sync_tree: seq": Cut("snapshots", 0, 11, 0),
    "snapshot.sync_tree: slots": Cut("snapshots", 0, 10, 0),
    "snapshot.sync_tree: snapshot.json": Cut("snapshots", 0, 18, 0),
    "snapshot.sync_tree: weights": Cut("snapshots", 0, 9, 0),
    "snapshot.take_snapshot: name of folder of snapshots": Cut("snapshots", 0, 61, 0),
    "snapshot.take_snapshot: name of snapshot": Cut("snapshots", 0, 1, 0),
    "staging.copy_live: manifest.json": Cut("versions", 0, 25, 0),
    "staging.copy_live: name of manifest.json": Cut("versions", 0, 22, 3),
    "staging.copy_live: name of staged folder": Cut("versions", 0, 20, 6),
    "staging.copy_live: name of version": Cut("versions", 0, 20, 3),
    "staging.finish: seq": Cut("versions", 1, 8, 0),
    "staging.finish: slots": Cut("versions", 1, 7, 0),
    "staging.finish: weights": Cut("versions", 1, 9, 0),
    "staging.finish_manifest: manifest.json": Cut("tables", 0, 21, 0),
    "staging.finish_manifest: name of manifest.json": Cut("tables", 0, 18, 3),
    "table_writer.finish: weights": Cut("tables", 1, 1, 0),
    "table_writer.write_default: default": Cut("tables", 0, 17, 0),
    "table_writer._complete: seq": Cut("tables", 0, 24, 0),
    "committing._remember: done.json": Cut("uploads", 0, 2, 2),
    "committing._remember: name of done.json": Cut("uploads", 1, 1, 0),
    "folder._sync_rows: keys.ends": Cut("uploads", 0, 4, 0),
    "folder._sync_rows: keys.raw": Cut("uploads", 0, 5, 0),
    "folder._sync_rows: sums": Cut("uploads", 0, 6, 0),
    "folder._sync_rows: weights": Cut("uploads", 0, 7, 0),
    "folder.create: name of progress": Cut("uploads", 0, 4, 4),
    "folder.create: name of upload": Cut("uploads", 0, 13, 0),
    "folder.create: name of upload.json": Cut("uploads", 0, 1, 0),
    "folder.create: progress": Cut("uploads", 0, 5, 2),
    "folder.create: upload.json": Cut("uploads", 0, 2, 2),
    "folder.finish: weights": Cut("uploads", 1, 1, 0),
    "progress.write_progress: progress": Cut("uploads", 0, 1, 0),
    "store.begin: name of staging": Cut("uploads", 0, 17, 0),
    "store.begin: name of uploads": Cut("uploads", 0, 15, 0),
    "token_file._rewritten: name of tokens": Cut("tokens", 0, 1, 0),
    "token_file._rewritten: tokens": Cut("tokens", 0, 3, 0),
    "wal_writer._blank: segment": Cut("full", 2, 1, 30),
    "wal_writer._make_room: name of segment": Cut("tables", 0, 5, 3),
    "wal_writer._make_room: segment": Cut("tables", 0, 4, 5),
    "wal_writer.append: segment": Cut("tables", 0, 4, 2),
    "wal_writer.drop_all: names in wal": Cut("unsynced", 0, 2, 28),
    "writer._checkpoint: checkpoint": Cut("tables", 0, 2, 2),
    "writer._checkpoint: name of checkpoint": Cut("tables", 0, 2, 20),
    "writer._checkpoint: seq": Cut("versions", 0, 5, 4),
    "writer._checkpoint: slots": Cut("tables", 3, 4, 2),
    "writer._checkpoint: weights": Cut("tables", 1, 8, 2),
    "writer.change_catalog: catalog.json": Cut("tables", 0, 12, 2),
    "writer.change_catalog: name of catalog.json": Cut("tables", 1, 94, 0),
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "gatherd")


@pytest.fixture(scope="module")
def met() -> Iterator[dict[str, Labels]]:
    """The syncs of every script."""
    logging.disable(logging.CRITICAL)
    yield {name: labels_of(name) for name in SCRIPTS}
    logging.disable(logging.NOTSET)


def _point(cut: Cut, label: str, met: dict[str, Labels]) -> tuple[int, int]:
    return met[cut.script][label][cut.occurrence] + cut.later, cut.seed


@pytest.mark.parametrize("label", SHOWN)
def test_without_the_sync_a_power_cut_loses_something(label: str, met: dict[str, Labels]) -> None:
    cut = SHOWN[label]
    ((_, what),) = shown(cut.script, label, [_point(cut, label, met)])
    assert what or _is_shown_nearby(cut, label, met), (
        f"{cut} and those near it show nothing; missing.py finds another, if there is one"
    )


def _is_shown_nearby(cut: Cut, label: str, met: dict[str, Labels]) -> bool:
    """Whether a cut at another call shows it: the code changed a little since it was found."""
    begin = met[cut.script][label][cut.occurrence] + 1
    points = [
        (call, seed)
        for seed in sorted({0, 2, 3, cut.seed})
        for call in range(begin, begin + NEAR_CALLS)
    ]
    for point, what in shown(cut.script, label, points, to_end=True):
        if what and dict(shown(cut.script, "", [point])) == {point: ""}:
            return True
    return False


@pytest.mark.parametrize("name", SCRIPTS)
def test_with_every_sync_in_place_the_same_cuts_lose_nothing(
    name: str, met: dict[str, Labels]
) -> None:
    points = {_point(cut, label, met) for label, cut in SHOWN.items() if cut.script == name}
    found = dict(shown(name, "", sorted(points)))
    assert found == dict.fromkeys(points, "")


def test_every_sync_is_shown_and_documented(met: dict[str, Labels]) -> None:
    found = {label for labels in met.values() for label in labels}
    assert found == set(SHOWN)
    rows = re.findall(r"^\| (`.*?`) \|", DOCUMENT.read_text(), re.MULTILINE)
    listed = [label for row in rows for label in re.findall(r"`(.*?: .*?)`", row)]
    assert sorted(listed) == sorted(found)


def test_no_code_syncs_but_what_the_scripts_come_to() -> None:
    known = {label.split(":")[0] for label in SHOWN} | {".".join(one) for one in THROUGH} | OUTSIDE
    found = set()
    for path in PRODUCT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path != PRODUCT / SEAM:
            found |= {f"{path.stem}.{name}" for name in _syncing(tree)}
            assert not re.search(r"\bf(data)?sync\(", path.read_text()), f"{path} syncs by itself"
    assert found - known == set()
    assert found >= OUTSIDE


def _syncing(tree: ast.Module) -> Iterator[str]:
    """The functions that call a method of the seam that syncs."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            receiver = ast.unparse(call.func.value).lower()
            is_seam = receiver.removesuffix("()").endswith("files")
            is_told = any(
                word.arg == "durable" and ast.unparse(word.value) == "False"
                for word in call.keywords
            )
            if is_seam and call.func.attr in SYNCING and not is_told:
                yield function.name
