# Written by client/generate_async.py from _calls/tables.py: change that, then `make calls`.
"""The awaited client's calls about tables: listing and changing them.

Client and AsyncClient inherit them.
"""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING

from gatherd._calls.short import short
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Plan, T
from gatherd._plans.pushes import Pushes
from gatherd._requests.names import (
    Batches,
    Keys,
    OnDuplicate,
    StoredDType,
    Values,
    Vectors,
)
from gatherd._requests.tables import (
    ChangeResult,
    InitGiven,
    OptimizerGiven,
    ServerInfo,
    SnapshotInfo,
    SnapshotResult,
    UploadInfo,
    UploadResult,
    check_copied,
    check_drawn,
    check_given,
    check_open,
    is_given,
)
from gatherd._wire import changes
from gatherd.errors import InvalidArgument
from gatherd.store.open_spec import KeyKindName, OnFullName, OnMissingName

if TYPE_CHECKING:
    from gatherd._plans.uploads import Upload


class AsyncTableCalls(ABC):
    """The calls; the class that inherits them runs the plans."""

    _answering: Answering
    _pushes: Pushes

    @abstractmethod
    async def _run(self, plan: Plan[T]) -> T: ...

    async def _upload(self, upload: "Upload") -> UploadResult:
        """Run an upload's plan, and cancel it after an error with which it can't go on."""
        try:
            return await self._run(upload.run())
        except BaseException as error:
            if upload.ended_by(error):
                await self._run(upload.cancel())
            raise

    @short
    async def versions(self, name: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """The versions of a table that can be looked up or rolled back to, ascending."""
        return await self._run(self._answering.versions(name, self._answering.deadline(timeout)))

    @short
    async def create_table(
        self,
        name: str,
        rows: int | Vectors | Values | Batches | None = None,
        dim: int | None = None,
        *,
        keys: KeyKindName | Keys | None = None,
        rows_max: int | None = None,
        on_missing: OnMissingName = "error",
        admit_after: int = 1,
        on_full: OnFullName = "error",
        ttl: float | timedelta | None = None,
        touch_on_lookup: bool = False,
        dtype: StoredDType | None = None,
        init: InitGiven = "uniform",
        seed: int | None = None,
        optimizer: OptimizerGiven | None = None,
        frozen: bool = False,
        default_vector: Values | None = None,
        allow_nonfinite: bool = False,
        on_duplicate: OnDuplicate = "error",
        resume: str | None = None,
        chunk_bytes: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Make a table of vectors, of drawn rows, or an open one. AlreadyExists when there is one.

        rows: the vectors, an array of shape (rows, dim), or an iterable of batches: arrays of shape
        (n, dim), or pairs of n keys and such an array. Or how many rows are drawn, of `dim`
        elements each.
        keys: of vectors in one array, a key for each, strings or 64-bit integers. Without `rows`,
        "int64", "uint64" or "string": an open table, which has no rows yet and grows. Its rows are
        asked for by such keys.
        rows_max: of an open table, the most rows that it can have; 100,000,000 by default.
        on_missing: "create" has every push create rows for keys that have none.
        admit_after: a key gets its row when it was pushed so often, up to 255 times. The pushes
        before are counted; the result's `not_admitted` tells of them.
        on_full: what a push does that needs a row when there are `rows_max`: "error" refuses it,
        "evict-lru" removes the rows that were pushed least recently, "evict-lfu" least often.
        ttl: seconds, or a timedelta, after which a row is removed that wasn't pushed meanwhile.
        touch_on_lookup: isn't there yet (Unimplemented): lookups are to count as pushes do.
        dtype: the dtype that the rows are stored in, "float32", "float16", "bfloat16" or "float64";
        by default as the vectors have it, and "float32" for lists, integers and what is drawn.
        init: how rows are drawn, as Keras' initializers do: a name such as "glorot_uniform", or
        {"name": "normal", "stddev": 0.1}; the same `seed`, the same rows. In an open table each key
        has one such vector: lookups with missing="init" give it, and the key's row begins with it.
        optimizer: applies gradients: a name such as "sgd", or {"name": "adam", "lr": 0.001}.
        Without one the table takes `scatter_add` and `assign`, but no gradients.
        frozen: makes a table that takes no updates; one of float64 never takes any. An open one
        is never frozen.
        default_vector: of vectors, the one for missing ids. allow_nonfinite: take NaN and infinity;
        otherwise they are NonfiniteValues. on_duplicate: of vectors whose key came before, "error",
        or keep the "first" or the "last".

        Vectors are uploaded in chunks of `chunk_bytes`, 8 MiB by default, and published at once
        when all are there; `timeout` bounds each request, and the result is an `UploadResult`. When
        the server can't be reached for that long, the error's metadata has the upload's name under
        "upload": the same call with `resume` goes on with it. Any other error cancels it.

        This and the other changes of tables are durable, and seen by every reader, when they
        return. A change isn't sent again once it may have been made: when an error's metadata has
        "outcome": "unknown", it may have been made or not.
        """
        grows = {
            "rows_max": rows_max,
            "on_missing": on_missing,
            "admit_after": admit_after,
            "on_full": on_full,
            "ttl": ttl,
            "touch_on_lookup": touch_on_lookup,
        }
        if is_given(rows):
            check_given(dim, init, seed, grows)
            upload = self._pushes.upload(
                name,
                *(rows, keys, dtype),
                optimizer=optimizer,
                frozen=frozen,
                default_vector=default_vector,
                allow_nonfinite=allow_nonfinite,
                on_duplicate=on_duplicate,
                resume=resume,
                chunk_bytes=chunk_bytes,
                timeout=timeout,
            )
            return await self._upload(upload)
        check_drawn(default_vector, resume, chunk_bytes)
        request = changes.create_table(
            name,
            rows,
            dim,
            dtype=dtype,
            init=init,
            seed=seed,
            optimizer=optimizer,
            frozen=frozen,
            opened=check_open(rows, dim, keys, grows),
        )
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def uploads(self, *, timeout: float | None = None) -> list[UploadInfo]:
        """The uploads of tables that are under way, or were given up and haven't expired."""
        return await self._run(self._pushes.uploads(timeout))

    @short
    async def cancel_upload(self, upload: str, *, timeout: float | None = None) -> None:
        """Delete an upload, by its name, and what was uploaded. NotFound when there is none."""
        return await self._run(self._pushes.cancel_upload(upload, timeout))

    @short
    async def add_staged_table(
        self, name: str, staged: str, *, timeout: float | None = None
    ) -> ChangeResult:
        """Make a table from files on the server's machine; otherwise as `create_table`.

        staged: a folder in the data dir's staging, which becomes the table's. This is how the
        command line hands a server what it imported.
        """
        request = changes.add_staged(name, staged)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def delete_table(
        self, name: str, *, force: bool = False, timeout: float | None = None
    ) -> ChangeResult:
        """Remove a table with all its versions. TableNotFound when there is none.

        FailedPrecondition when an alias points to it, unless `force` is to remove its aliases too.
        """
        request = changes.delete_table(name, force=force)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def rename(
        self, name: str, to: str, *, keep_alias: bool = False, timeout: float | None = None
    ) -> ChangeResult:
        """Give a table another name; its versions and its aliases stay with it.

        AlreadyExists when `to` is a table or an alias. FailedPrecondition when `name` is an alias.

        keep_alias: leave an alias under the old name, so that no request by it ever fails.
        """
        request = changes.rename(name, to, keep_alias=keep_alias)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def alias(self, name: str, table: str, *, timeout: float | None = None) -> ChangeResult:
        """Point the alias `name` to a table, or switch it from another one, at one instant.

        Lookups, pushes and changes of versions go by an alias as by a name; each request that
        begins after the switch goes to the new table. AlreadyExists when `name` is a table,
        InvalidArgument when `table` is itself an alias. The result has that table's live version.
        """
        request = changes.alias(name, table)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def unalias(self, name: str, *, timeout: float | None = None) -> ChangeResult:
        """Remove an alias; its table stays. NotFound when there is none."""
        request = changes.unalias(name)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def clone(self, name: str, to: str, *, timeout: float | None = None) -> ChangeResult:
        """Make a table `to` as a copy of `name`, while that goes on being updated.

        The copy has the rows, keys and optimizer's state of the live version, all as of the LSN of
        the result. AlreadyExists when there is a table or an alias `to`.
        """
        request = changes.clone(name, to)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def replace(
        self,
        name: str,
        source: str,
        *,
        if_version: int | None = None,
        allow_dim_change: bool = False,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Publish a copy of table `source` as the new live version of `name`.

        Rows, keys, dtype, optimizer and its state are those of `source` as of the LSN of the
        result; `rollback` goes back to what `name` had. `source` stays as it is. Pushes to `name`
        are refused while the copy is made (Unavailable, and the client sends them again), so that
        none changes rows that are about to be replaced.

        FailedPrecondition when the two have other kinds of keys, or, unless `allow_dim_change`,
        other dims. if_version: the version of `name` that has to be live, else VersionMismatch.
        """
        request = changes.replace(
            name, source, if_version=if_version, allow_dim_change=allow_dim_change
        )
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def publish(
        self,
        name: str,
        vectors: Vectors | Values | Batches | None = None,
        *,
        keys: Keys | None = None,
        dtype: StoredDType | None = None,
        optimizer: OptimizerGiven | None = None,
        default_vector: Values | None = None,
        allow_nonfinite: bool = False,
        on_duplicate: OnDuplicate = "error",
        staged: str = "",
        if_version: int | None = None,
        resume: str | None = None,
        chunk_bytes: int | None = None,
        if_lsn: int | None = None,
        keep_rows: bool = False,
        reset_state: bool = False,
        allow_dim_change: bool = False,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Make a new version live: of `vectors`, or a copy of the version that is live now.

        A copy keeps the live version as it is now. The result's `version` is that copy: updates go
        on changing it, so it is no checkpoint. The version that was live before is kept, one of
        `table(name).versions`; `rollback` without a version goes back to it.

        vectors: the new version's rows, uploaded as by `create_table`, which has the other
        arguments. Without `optimizer` and `default_vector` it has the table's.
        staged: a folder in the data dir's staging, to publish its files instead. They may have more
        or fewer rows. Rows that stay, by key or else by id, keep their optimizer state; new ones
        begin with the optimizer's first one. Pushes to the table are refused meanwhile
        (Unavailable, and the client sends them again), so that none changes rows that are about to
        be replaced.
        if_version: the version that has to be live, else VersionMismatch.
        if_lsn: refuse (FailedPrecondition) if the table took a push above this LSN, so that rows
        which were read before aren't written back over a later push.
        keep_rows: rows that stay keep their contents, too, and pushes go on; of the files only the
        rows that are new count.
        reset_state: the optimizer's state begins anew for every row.
        allow_dim_change: the files may have another dim; then the state begins anew, and the
        result's `state` says so.
        """
        if vectors is None:
            check_copied(keys, dtype, optimizer, default_vector, resume, chunk_bytes)
            request = changes.publish(
                name,
                staged=staged,
                if_version=if_version,
                if_lsn=if_lsn,
                keep_rows=keep_rows,
                reset_state=reset_state,
                allow_dim_change=allow_dim_change,
            )
            return await self._run(self._pushes.change(request, timeout))
        if if_lsn is not None or keep_rows or reset_state or allow_dim_change:
            raise InvalidArgument(
                "if_lsn, keep_rows, reset_state and allow_dim_change are about staged files, and "
                "uploaded rows can't have them yet"
            )
        if staged:
            raise InvalidArgument("a version is of vectors or of staged files, not of both")
        upload = self._pushes.upload(
            name,
            *(vectors, keys, dtype),
            publishes=True,
            if_version=if_version,
            optimizer=optimizer,
            default_vector=default_vector,
            allow_nonfinite=allow_nonfinite,
            on_duplicate=on_duplicate,
            resume=resume,
            chunk_bytes=chunk_bytes,
            timeout=timeout,
        )
        return await self._upload(upload)

    @short
    async def rollback(
        self,
        name: str,
        version: int | None = None,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Make an older version live again, with the contents it had when it was superseded.

        It then goes on being changed by updates: `publish` first if it is to be kept.

        version: the one to go back to; None for the newest before the live one. VersionNotFound
        when it isn't kept. if_version: the version that has to be live, else VersionMismatch.
        """
        request = changes.rollback(name, version, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def ping(self, *, timeout: float | None = None) -> ServerInfo:
        """The server's version and state, and how long a round trip to it takes.

        The first of two requests connects; the second is timed. Unavailable when there is none;
        over local: too, if no server has the data dir.
        """
        return await self._run(self._pushes.ping(timeout))

    @short
    async def delete_version(
        self, name: str, version: int, *, timeout: float | None = None
    ) -> ChangeResult:
        """Remove a superseded version, and free its disk space.

        FailedPrecondition for the live version, for the one with the highest number (no number is
        given twice, so it stays until another one is published), and for one that was looked up in
        the last ten seconds. VersionNotFound when there is none. The result has the live version.
        """
        request = changes.delete_version(name, version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def set_optimizer(
        self,
        name: str,
        optimizer: OptimizerGiven | None = None,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
        **options: float,
    ) -> ChangeResult:
        """Change how a table is trained.

            client.set_optimizer("items", lr=0.01)               # in place; the rest stays
            client.set_optimizer("items", "adam", lr=0.001)

        optimizer: a name such as "adam", with its options as keywords, or a dict of both, as
        `TableInfo.optimizer` has it. An option that isn't given has its default, one that the
        optimizer doesn't have is InvalidArgument. Without a name the present optimizer gets the
        options that are given and keeps the others.

        If the optimizer keeps the same state as before, nothing is copied and the version stays:
        pushes from the result's `lsn` on are done with the new options. Otherwise a copy of the
        live version, whose state begins anew, becomes a new version and is live. The one before it
        keeps the old state, to roll back to.

        if_version: the version that has to be live, else VersionMismatch.
        """
        request = changes.set_optimizer(name, optimizer, options, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def snapshot(self, name: str = "", *, timeout: float | None = None) -> SnapshotResult:
        """Copy the data dir, as it is at one LSN, to a folder on its machine; updates go on.

        name: the folder's name; empty for one made of the time and the LSN. AlreadyExists when
        there is such a folder.
        """
        return await self._run(self._pushes.snapshot(name, timeout))

    @short
    async def snapshots(self, *, timeout: float | None = None) -> list[SnapshotInfo]:
        """The snapshots in the server's folder, oldest first; damaged ones come before the others.

        FailedPrecondition when the server has no folder for snapshots.
        """
        return await self._run(self._pushes.snapshots(timeout))

    @short
    async def delete_snapshot(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a snapshot, durably.

        NotFound when there is none. FailedPrecondition for one that is being copied or restored,
        and for a folder that isn't a snapshot.
        """
        return await self._run(self._pushes.delete_snapshot(name, timeout))
