"""The blocking client's updates of rows.

Client and AsyncClient inherit them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Unpack, overload

from gatherd._calls.options import PushOptions, StepOptions
from gatherd._calls.short import short
from gatherd._plans.effects import Plan, T
from gatherd._plans.pushes import Pushes
from gatherd._requests.names import Ids, Keys, Values
from gatherd._requests.updates import RowsGiven, UpdateOp, UpdateResult


class UpdateCalls(ABC):
    """The calls; the class that inherits them runs the plans."""

    _pushes: Pushes

    @abstractmethod
    def _run(self, plan: Plan[T]) -> T: ...

    @overload
    def scatter_add(
        self,
        table: str,
        ids: Ids,
        deltas: Values,
        **options: Unpack[PushOptions],
    ) -> UpdateResult: ...

    @overload
    def scatter_add(
        self,
        table: str,
        ids: None = None,
        deltas: Values | None = None,
        *,
        keys: Keys,
        **options: Unpack[PushOptions],
    ) -> UpdateResult: ...

    @short
    def scatter_add(
        self,
        table: str,
        ids: Ids | None = None,
        deltas: Values | None = None,
        *,
        keys: Keys | None = None,
        create: bool = False,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """table[ids] += deltas, in which every duplicate counts; durable when it returns.

        ids: integers of any dtype and shape S, or `keys`, as for `lookup`.
        deltas: of shape S + (dim,), finite. float32, float16 and bfloat16 (of ml_dtypes) are sent
        as they are; float64 and integers are rounded to float32. Sums are made in float32 and
        rounded to the table's dtype once. Rows of the table's padding id stay as they are.
        create: in an open table, give each key without a row one that begins as its initial vector,
        and then make the update. The result counts them, and the keys that don't get one yet (see
        `admit_after` in `create_table`). Without it such a key is KeyNotFound, unless the table was
        made with on_missing="create". InvalidArgument for a closed table, and for ids.
        if_version: the version that has to be live, else VersionMismatch.
        timeout: seconds, instead of the client's.

        It is done once, however often it has to be sent: each push has an id, which the server
        remembers. The client draws that id; `idempotency_key`, 1 to 255 visible ASCII characters,
        is one of yours instead, under which another process can send the push again. When an
        error's metadata has "outcome": "unknown", the push may have been done or not, as after
        DeadlineExceeded. The same holds after an awaited call was cancelled.

        Either all of it is done or nothing: TableReadOnly for a frozen table or a served file,
        NonfiniteValues for NaN and infinity in `deltas` or in a row that they would produce,
        IdOutOfRange, KeyNotFound, RequestIdStale when so much was pushed since the first try that
        nothing tells whether it was done. A push isn't split: one that is over the server's limits
        is LimitExceeded, and so is one that creates rows for which an open table has no room.

        Arrays of a dtype and layout that can be sent are not copied before that: don't write to
        them until the call has ended. Over HTTP the kernel reads large ones in place, and small
        ones are copied once before; over gRPC all are copied twice.
        """
        return self._run(
            self._pushes.push(
                UpdateOp.SCATTER_ADD,
                table,
                ids,
                keys,
                deltas,
                create=create,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @short
    def scatter_add_many(
        self,
        updates: Mapping[str, RowsGiven] | None = None,
        *,
        keys: Mapping[str, RowsGiven] | None = None,
        create: bool | Mapping[str, bool] = False,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Several tables in one push, all or nothing: {table: (ids, deltas)}.

        keys: {table: (keys, deltas)}, for tables updated by key; a table has ids or keys.
        create: for all tables that are given by key, or {table: bool} for some.
        if_version: {table: version}, for some or all. The rest: as for `scatter_add`.
        """
        return self._run(
            self._pushes.push_many(
                UpdateOp.SCATTER_ADD,
                updates,
                keys,
                create=create,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @overload
    def apply_gradients(
        self,
        table: str,
        ids: Ids,
        grads: Values,
        **options: Unpack[StepOptions],
    ) -> UpdateResult: ...

    @overload
    def apply_gradients(
        self,
        table: str,
        ids: None = None,
        grads: Values | None = None,
        *,
        keys: Keys,
        **options: Unpack[StepOptions],
    ) -> UpdateResult: ...

    @short
    def apply_gradients(
        self,
        table: str,
        ids: Ids | None = None,
        grads: Values | None = None,
        *,
        keys: Keys | None = None,
        lr: float | None = None,
        create: bool = False,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """One step of the table's optimizer; the gradients of duplicates are summed first.

        grads: of shape S + (dim,), as `scatter_add` takes deltas.
        lr: instead of the table's learning rate, for this step.
        Everything else, including errors and exactly-once behaviour, is as in `scatter_add`.
        """
        return self._run(
            self._pushes.push(
                UpdateOp.APPLY_GRADIENTS,
                table,
                ids,
                keys,
                grads,
                lr=lr,
                create=create,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @short
    def apply_gradients_many(
        self,
        updates: Mapping[str, RowsGiven] | None = None,
        *,
        keys: Mapping[str, RowsGiven] | None = None,
        lr: float | Mapping[str, float] | None = None,
        create: bool | Mapping[str, bool] = False,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Several tables in one push, all or nothing: {table: (ids, grads)}.

        keys: {table: (keys, grads)}. lr: one for all, or {table: lr} for some or all.
        create: for all tables that are given by key, or {table: bool} for some.
        if_version: {table: version}, for some or all. The rest: as for `apply_gradients`.
        """
        return self._run(
            self._pushes.push_many(
                UpdateOp.APPLY_GRADIENTS,
                updates,
                keys,
                lr=lr,
                create=create,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @overload
    def assign(
        self,
        table: str,
        ids: Ids,
        rows: Values,
        **options: Unpack[PushOptions],
    ) -> UpdateResult: ...

    @overload
    def assign(
        self,
        table: str,
        ids: None = None,
        rows: Values | None = None,
        *,
        keys: Keys,
        **options: Unpack[PushOptions],
    ) -> UpdateResult: ...

    @short
    def assign(
        self,
        table: str,
        ids: Ids | None = None,
        rows: Values | None = None,
        *,
        keys: Keys | None = None,
        create: bool = False,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """table[ids] = rows; of duplicates the last one counts.

        rows: of shape S + (dim,), as `scatter_add` takes deltas; they are rounded to the table's
        dtype.
        Everything else, including errors and exactly-once behaviour, is as in `scatter_add`.
        """
        return self._run(
            self._pushes.push(
                UpdateOp.ASSIGN,
                table,
                ids,
                keys,
                rows,
                create=create,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @short
    def assign_many(
        self,
        updates: Mapping[str, RowsGiven] | None = None,
        *,
        keys: Mapping[str, RowsGiven] | None = None,
        create: bool | Mapping[str, bool] = False,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Several tables in one push, all or nothing: {table: (ids, rows)}.

        keys: {table: (keys, rows)}. create: for all tables that are given by key, or {table: bool}
        for some. if_version: {table: version}, for some or all. The rest: as for `assign`.
        """
        return self._run(
            self._pushes.push_many(
                UpdateOp.ASSIGN,
                updates,
                keys,
                create=create,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @short
    def upsert(
        self,
        table: str,
        keys: Keys,
        rows: Values,
        *,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Assign rows of an open table by key, and create those that aren't there.

        As `assign(table, keys=keys, rows=rows, create=True)`, with its errors.
        """
        return self._run(
            self._pushes.push(
                UpdateOp.ASSIGN,
                table,
                None,
                keys,
                rows,
                create=True,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @short
    def delete_rows(
        self,
        table: str,
        keys: Keys,
        *,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Remove rows of an open table by key, with the optimizer's state that they have.

        keys: of any shape. One without a row is no error: the result's `removed` counts the rows
        that went. A key that comes again begins anew, as its initial vector.
        InvalidArgument for a closed table. Everything else, including exactly-once behaviour, is as
        in `scatter_add`.
        """
        return self._run(
            self._pushes.delete_rows(
                {table: keys},
                if_version=None if if_version is None else {table: if_version},
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @short
    def delete_rows_many(
        self,
        keys: Mapping[str, Keys],
        *,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Remove rows of several open tables in one push, all or nothing: {table: keys}.

        if_version: {table: version}, for some or all. The rest: as for `delete_rows`.
        """
        return self._run(
            self._pushes.delete_rows(
                keys,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )
