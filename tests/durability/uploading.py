"""Uploads in a history: what was sent, and what must be there of it after a power cut."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from unittest import mock

import numpy as np

from durability.oracle import Did, Sent, Version
from durability.trainer import Trainer
from gatherd.errors import FailedPrecondition
from gatherd.store.catalog import MANIFEST_NAME, version_dir
from gatherd.store.checksums import CHECKSUMS, FileChecksums, read_document, verify_blocks
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd_server.data_dir.uploads import crc, folder, progress
from gatherd_server.data_dir.uploads.spec import Chunk, Committed, UploadLimits, UploadSpec
from gatherd_server.data_dir.uploads.store import Uploads

DIM = 256
# Of chunks of 40 rows some are synced and some aren't, and blocks end in either.
SYNC_ROWS = 80
BLOCK_BYTES = 32 << 10


def begin_upload(trainer: Trainer, table: str, row_count: int) -> str:
    """Begin an upload of a table with keys that takes no updates; its name."""
    number = len(trainer.uploads)
    spec = UploadSpec(table, DIM, DType.FLOAT32, KeyKind.BYTES, row_count, frozen=True)
    rows = np.random.default_rng(number).normal(size=(row_count, DIM)).astype(np.float32)
    keys = tuple(b"key-%d-%d" % (number, row) for row in range(row_count))
    upload = f"{number:032x}"
    trainer.uploads[upload] = Sent(spec, rows, keys)
    _uploads(trainer).begin(upload, spec)
    _note(trainer, upload, is_begun=True)
    return upload


def send_rows(trainer: Trainer, upload: str, begin: int, end: int) -> None:
    """Send the upload's rows from `begin` to `end` in one chunk."""
    sent = trainer.uploads[upload]
    _note(trainer, upload, sent=end)
    keys = StringKeys.of(list(sent.keys[begin:end]))
    chunk = Chunk(upload, begin, sent.rows[begin:end], DType.FLOAT32, keys)
    with _small():
        assert _uploads(trainer).append(chunk) == end
    _note(trainer, upload, acknowledged=end)


def commit_upload(trainer: Trainer, upload: str) -> Committed:
    """Make the upload a table, or get the answer to an earlier commit."""
    sent = trainer.uploads[upload]
    with _uploads(trainer).committing(upload) as held:
        done = held.found(trainer.acknowledged)
        if done is None:
            with _small():
                change = held.stage()
            weights = sent.rows.view(np.uint8)
            rows = Version(DType.FLOAT32, DIM, None, weights, {}, sent.keys)
            done = held.done(trainer.change(change, Did(change, rows=rows)))
    _note(trainer, upload, done=done)
    return done


def check_uploads(trainer: Trainer, uploads: dict[str, Sent]) -> None:
    """After a power cut, whoever goes on with an upload gets the whole table."""
    with mock.patch.object(progress, "boot_id", return_value=b"\x01" * 16):
        for upload, sent in uploads.items():
            trainer.uploads[upload] = sent
            _go_on(trainer, upload, sent)
            done = commit_upload(trainer, upload)
            assert sent.done in (None, done), f"the commit got {done}, not {sent.done}"
            assert (done.row_count, done.duplicates) == (len(sent.rows), 0), f"{done}"
            path = version_dir(trainer.data, sent.spec.table, done.version)
            checksums = read_document(path / MANIFEST_NAME)[CHECKSUMS]
            for name, entry in checksums.items():
                for _ in verify_blocks(path / name, FileChecksums.from_json(entry, name)):
                    pass


def _go_on(trainer: Trainer, upload: str, sent: Sent) -> None:
    """Send what the server lacks; what was acknowledged and synced it has."""
    uploads = _uploads(trainer)
    if sent.is_begun:
        assert uploads.spec(upload) == sent.spec
    try:
        status = uploads.begin(upload, sent.spec)
    except FailedPrecondition:  # it was committed, and the commit's answer will tell
        return
    if sent.spec.table in trainer.state:
        # Somebody else's rows don't get into the table.
        keys = StringKeys.of([b"another"])
        zeros = np.zeros((1, DIM), np.float32)
        with suppress(FailedPrecondition):
            uploads.append(Chunk(upload, status.next_row, zeros, DType.FLOAT32, keys))
        return
    least = max(0, sent.acknowledged - SYNC_ROWS)
    assert least <= status.next_row <= sent.sent, f"the upload goes on at {status.next_row}"
    if not status.is_committing:
        send_rows(trainer, upload, status.next_row, len(sent.rows))


@contextmanager
def _small() -> Iterator[None]:
    """Syncs and blocks of checksums come often."""
    with (
        mock.patch.object(folder, "SYNC_BYTES", SYNC_ROWS * DIM * 4),
        mock.patch.object(folder, "BLOCK_BYTES", BLOCK_BYTES),
        mock.patch.object(crc, "BLOCK_BYTES", BLOCK_BYTES),
    ):
        yield


def _note(trainer: Trainer, upload: str, **known: object) -> None:
    trainer.uploads[upload] = replace(trainer.uploads[upload], **known)  # type: ignore[arg-type]


def _uploads(trainer: Trainer) -> Uploads:
    return Uploads(trainer.files, trainer.data, UploadLimits())
