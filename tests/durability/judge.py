"""Holds what a disk had after a power cut against what is known to have been acknowledged."""

from collections.abc import Sequence
from pathlib import Path

from durability.oracle import Did, State, check
from durability.trainer import WAIT_SECONDS, Quick, Trainer, View
from durability.uploading import check_uploads
from gatherd.errors import BadFile
from gatherd.store.catalog import read_catalog, version_dir
from gatherd.store.key_index import read_keys_info, verify_file
from gatherd_server.access.token_file import read_tokens
from gatherd_server.data_dir.verify_open import verify_open
from gatherd_server.snapshots.naming import PARTIAL_SUFFIX
from gatherd_server.snapshots.snapshot import verify_snapshot
from gatherd_server.types import Push


def judge(root: Path, view: View, *, is_restart: bool = False) -> None:
    """Recover what the disk had and hold it against what is known. AssertionError if it isn't so.

    Anything else that is raised is a failure too: recovery may refuse nothing of this, but for a
    power cut under a writer that acknowledges before it syncs.
    """
    states = view.states()
    trainer = Trainer(root, Quick(), seed=999, limits=view.limits)
    _judge_copies(root, view, states)
    _judge_tokens(root / "tokens", view)
    if not view.is_made:
        trainer.make()
    try:
        try:
            lsn = trainer.start(is_restart=is_restart)
        except BadFile as error:
            if "--durability os" in str(error) and not (view.limits.syncs or view.is_stopped):
                return
            raise
        assert view.acknowledged <= lsn <= len(view.history), (
            f"recovered up to LSN {lsn}; {view.acknowledged} of {len(view.history)} acknowledged"
        )
        trainer.goes_on_from(view, lsn)
        check(trainer.data, states[lsn], is_settled=True)
        _retry(trainer, view.history[:lsn])
        check(trainer.data, states[lsn], is_settled=True)
        if not view.is_damaged:
            _check_keys(trainer)
            trainer.push_some(2)
        check_uploads(trainer, view.uploads)
        final = trainer.state
        check(trainer.data, final, is_settled=True)
        trainer.stop()
        again = Trainer(root, Quick(), limits=view.limits)
        assert again.start() == trainer.acknowledged
        check(again.data, final, is_settled=True)
        again.stop()
    finally:
        trainer.abandon()


def _judge_tokens(path: Path, view: View) -> None:
    """The file of tokens is whole, and has what was acknowledged or what was being written."""
    grants = read_tokens(path).values() if path.exists() else ()
    names = frozenset(grant.name for grant in grants)
    assert names in view.tokens, f"tokens of {sorted(names)}, not of {view.tokens}"


def violation(root: Path, view: View) -> str:
    """What `judge` says is wrong, or nothing."""
    try:
        judge(root, view)
    except Exception as error:  # noqa: BLE001 - whatever it is, recovery failed
        return f"{type(error).__name__}: {error}"
    return ""


def _check_keys(trainer: Trainer) -> None:
    """The key indexes are what their checksums say, or lead to every row of an open table."""
    for name, table in trainer.state.items():
        for number, version in table.versions.items():
            if version.opened is not None:
                of = read_catalog(trainer.data).tables[name].folder_of(name)
                folder = version_dir(trainer.data, of, number)
                for _ in verify_open(folder, version.opened.spec):
                    pass
        if table.keys is not None:
            entry = read_catalog(trainer.data).tables[name]
            folder = version_dir(trainer.data, entry.folder_of(name), table.live)
            info = read_keys_info(folder)
            assert info is not None
            for array in info.arrays():
                verify_file(folder / array, info)


def _retry(trainer: Trainer, history: Sequence[Did]) -> None:
    """Every push that was done gets its first answer."""
    for did in history:
        if isinstance(did.what, Push) and did.what.request_id is not None:
            answer = trainer.writer.submit(did.what, did.digest).result(WAIT_SECONDS)
            assert answer == did.result, f"the retry got {answer}, not {did.result}"


def _judge_copies(root: Path, view: View, states: Sequence[State]) -> None:
    """What was acknowledged of snapshots, and of what was restored, is whole."""
    for snapshot in view.snapshots:
        for _ in verify_snapshot(root / snapshot.path):
            pass
        check(root / snapshot.path, states[snapshot.lsn], is_settled=False)
    for folder in root.glob("snaps/*"):
        if not folder.name.endswith(PARTIAL_SUFFIX):
            for _ in verify_snapshot(folder):
                pass
    for restored in view.restored:
        other = Trainer(root, Quick(), limits=view.limits)
        other.data = root / restored.path
        try:
            assert other.start() == restored.lsn
            check(other.data, states[restored.lsn], is_settled=True)
            other.stop()
        finally:
            other.abandon()
    # One that wasn't acknowledged is whole or isn't one.
    known = {restored.path for restored in view.restored}
    for folder in root.glob("again-*"):
        if folder.name not in known and (folder / "catalog.json").exists():
            lsn = next(s.lsn for s in view.snapshots if s.path.endswith(folder.name[6:]))
            check(folder, states[lsn], is_settled=False)
