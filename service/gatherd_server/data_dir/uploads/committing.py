"""An upload becomes a version: its files are completed in staging, and the writer takes them in.

The version's uid is the upload's name. So after any crash the catalog tells whether the upload was
committed, and a commit that is sent again finishes it or gets the same answer. Until then the
upload keeps its rows: the version's weights.npy is the same file under a second name. That is why
no chunk is taken once a commit has begun; it could be a live table's by now.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from gatherd.errors import (
    BadFile,
    FailedPrecondition,
    GatherdError,
    StorageError,
)
from gatherd.store.catalog import (
    DEFAULT_NAME,
    STAGING_NAME,
    WEIGHTS_NAME,
    named_entry,
    read_catalog,
    read_default_vector,
    version_dir,
)
from gatherd.store.checksums import encode_document, read_document
from gatherd.store.keys import Keys
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.data_dir.uploads.checks import duplicate
from gatherd_server.data_dir.uploads.folder import SPEC_NAME, UploadFolder
from gatherd_server.data_dir.uploads.progress import PROGRESS_NAME
from gatherd_server.data_dir.uploads.spec import Committed, UploadSpec
from gatherd_server.loaders.batches import show_key
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import (
    Block,
    TableFiles,
    WrittenRows,
    stage_table,
    stage_written,
)
from gatherd_server.storage.trainable import read_manifest
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import AddStaged, ChangeResult, OnDuplicate, Publish

DONE_NAME: Final = "done.json"


class Commit:
    """An upload that is held while it is made a version; from `Uploads.committing`."""

    def __init__(self, files: Files, data_dir: Path, folder: Path) -> None:
        self._files = files
        self._data_dir = data_dir
        self._folder = folder
        self._upload = folder.name
        self._rows = self._duplicates = 0

    def found(self, lsn: int) -> Committed | None:
        """The answer to an earlier commit, or None. `lsn` is the one now, in case it was lost."""
        done = read_done(self._folder)
        if done is not None:
            return done
        spec = self._spec()
        catalog = read_catalog(self._data_dir)
        name = catalog.meant(spec.table)
        entry = catalog.tables.get(name)
        for version in entry.versions if entry is not None else ():
            folder = version_dir(self._data_dir, entry.folder_of(name) if entry else name, version)
            with suppress(BadFile):
                manifest = read_manifest(folder)
                if manifest["uid"] == self._upload:
                    rows = int(str(manifest["rows"]))
                    found = Committed(version, lsn, rows, self._sent_rows() - rows)
                    return self._remember(found)
        return None

    def stage(self) -> AddStaged | Publish:
        """Complete the version's files in staging, and return the change that publishes them.

        FailedPrecondition when rows are missing, or a table to publish to isn't alike;
        InvalidArgument, naming the rows, for keys that are there twice; DiskFull. The upload is as
        it was then.
        """
        staging = self._data_dir / STAGING_NAME
        with UploadFolder.open(self._files, self._folder) as opened:
            spec, rows = opened.spec, opened.progress.now.rows
            if spec.row_count not in (None, rows):
                raise FailedPrecondition(
                    f"the upload has {rows} of {spec.row_count} rows; the next chunk begins at "
                    f"row {rows}",
                    {"upload": self._upload, "expected": str(rows)},
                )
            opened.begin_commit()
            try:
                self._forget_staged()
                table, live = self._table(spec, rows)
                if spec.on_duplicate is OnDuplicate.ERROR:
                    written = self._written(opened)
                    staged = stage_written(self._files, staging, table, written, self._upload)
                else:
                    table = replace(table, row_count=rows, blocks=self._blocks(opened))
                    staged = stage_table(self._files, staging, table, self._upload)
            except BaseException:
                opened.reopen()
                raise
        self._rows, self._duplicates = staged.row_count, rows - staged.row_count
        if not spec.publishes:
            return AddStaged(spec.table, self._upload)
        # Insisting on the version that was live tells a publish that was made and lost track of.
        return Publish(spec.table, self._upload, live)

    @property
    def insists(self) -> bool:
        """Whether the upload itself names the version that has to be live."""
        return self._spec().if_version != LIVE_VERSION

    def failed(self, error: GatherdError) -> None:
        """Undo `stage`, unless the writer may still make the version of it."""
        if error.metadata.get("outcome") == "unknown":
            return
        self._forget_staged()
        with UploadFolder.open(self._files, self._folder) as opened:
            opened.reopen()

    def done(self, result: ChangeResult) -> Committed:
        """Remember the answer, and delete the upload's files."""
        return self._remember(Committed(result.version, result.lsn, self._rows, self._duplicates))

    # ------------------------------------------------------------------ helpers

    def _spec(self) -> UploadSpec:
        path = self._folder / SPEC_NAME
        return UploadSpec.from_json(read_document(path), str(path))

    def _sent_rows(self) -> int:
        with UploadFolder.open(self._files, self._folder) as opened:
            return opened.progress.now.rows

    def _forget_staged(self) -> None:
        staged = self._data_dir / STAGING_NAME / self._upload
        if staged.exists():
            self._files.remove_tree(staged)

    def _remember(self, committed: Committed) -> Committed:
        self._files.replace(self._folder / DONE_NAME, encode_document(asdict(committed)))
        for path in self._folder.iterdir():
            if path.name not in (SPEC_NAME, DONE_NAME, PROGRESS_NAME):
                # What stays is deleted with the folder.
                with suppress(StorageError):
                    self._files.unlink(path)
        return committed

    def _table(self, spec: UploadSpec, rows: int) -> tuple[TableFiles, int]:
        """The version to write, and which one is live."""
        optimizer = spec.wanted_optimizer
        default, live = spec.default_array, LIVE_VERSION
        if spec.publishes:
            name, entry = named_entry(read_catalog(self._data_dir), spec.table)
            live = spec.if_version or entry.live
            folder = version_dir(self._data_dir, entry.folder_of(name), entry.live)
            kept = entry.optimizer_of(entry.live) or read_manifest(folder).get("optimizer")
            if optimizer is None and kept is not None:
                optimizer = Optimizer.from_json(kept)
            if default is None and (folder / DEFAULT_NAME).exists():
                default = read_default_vector(folder / DEFAULT_NAME)
        table = TableFiles(
            spec.table,
            spec.dtype,
            rows,
            spec.dim,
            (),
            {"uploaded": self._upload},
            default,
            spec.key_kind,
            optimizer,
        )
        return table, live

    def _written(self, opened: UploadFolder) -> WrittenRows:
        checksums = opened.finish()

        def refuse(keys: Keys, index: int, row: int, earlier: int) -> None:
            raise duplicate(self._upload, row, show_key(keys, index), earlier)

        keys = opened.key_batches() if opened.spec.key_kind is not None else ()
        weights = opened.path / WEIGHTS_NAME
        return WrittenRows(weights, opened.progress.now.rows, checksums, keys, refuse)

    def _blocks(self, opened: UploadFolder) -> Iterator[Block]:
        replaces = opened.spec.on_duplicate is OnDuplicate.LAST
        for rows, keys in opened.row_batches():
            yield Block(rows, keys, lambda _is_duplicate: replaces)


def read_done(folder: Path) -> Committed | None:
    """The answer to an upload's commit; None for one that isn't committed."""
    path = folder / DONE_NAME
    if not path.exists():
        return None
    fields: dict[str, Any] = read_document(path)
    return Committed(**{name: fields[name] for name in Committed.__dataclass_fields__})
