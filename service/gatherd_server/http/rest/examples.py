"""Fills the OpenAPI document's examples in from the tables that a caller may ask.

So a form made of the document, as the page at /docs has, can be sent as it is. A form that changes
something is made so that sending it does no harm: updates leave the rows' values as they are, and
what removes or replaces is filled in for a table that the form of createTable makes.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from gatherd.errors import GatherdError
from gatherd.store.catalog import check_table_name
from gatherd_proto.headers import JSON
from gatherd_server.access.callers import TABLE_CHARS_MAX, AnyEngine, Caller
from gatherd_server.http.rest.arrays import json_keys
from gatherd_server.http.rest.openapi_uploads import EXAMPLE_UPLOAD
from gatherd_server.types import Lookup, TableInfo, UpdatesState

# No name that somebody gives a table: the form of deleteTable is filled in with it.
SANDBOX: Final = "docs-example"
# Looking at a table costs up to some milliseconds: the kernel counts its pages in memory.
LOOKED_AT_MAX: Final = 16
# A row of more elements makes no readable example.
EXAMPLE_DIM_MAX: Final = 4096

Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Found:
    """Tables to make examples of; None where no table is fit. All but `opened` are closed."""

    first: TableInfo | None
    """A table with rows."""
    second: TableInfo | None
    keyed: TableInfo | None
    keys: dict[str, Any]
    """The first key of `keyed`, as the body of a request."""
    trained: TableInfo | None
    """A table that takes updates, and gradients too if one does."""
    row: list[float] | None
    """The first row of `trained`, if the caller may read it and JSON can write it."""
    opened: str
    """An open table, or ""."""
    sandbox: str
    """The name of the table that createTable's form makes; there may be one."""
    unused: str
    """A name that no table has."""
    takes_changes: bool


def filled(document: Document, engine: AnyEngine, caller: Caller) -> Document:
    """A copy of `document` whose examples `engine` answers to `caller`.

    An example for which there is no fit table stays as it was.
    """
    found = _find(engine, caller)
    document = copy.deepcopy(document)
    for methods in document["paths"].values():
        for operation in methods.values():
            _fill(operation, found)
    return document


def _fill(operation: dict[str, Any], found: _Found) -> None:
    made = _EXAMPLES.get(operation["operationId"], _of_first)(found)
    for parameter in operation.get("parameters", ()):
        example = made.table if parameter["name"] == "table" else made.path.get(parameter["name"])
        if example:
            parameter["example"] = example
    content = operation.get("requestBody", {}).get("content", {}).get(JSON)
    if content is not None and made.body is not None:
        content["example"] = made.body
    told = [operation.get("description", ""), made.note]
    if made.is_change and not found.takes_changes:
        told.append("**This server has no data dir that it changes, so it refuses this.**")
    description = "\n\n".join(part for part in told if part)
    if description:
        operation["description"] = description


@dataclass(frozen=True, slots=True)
class _Made:
    """An operation's example; empty where the document's own stays."""

    table: str = ""
    body: Any = None
    note: str = ""
    is_change: bool = False
    path: Mapping[str, str] = field(default_factory=dict)
    """The path's other parameters."""


def _of_first(found: _Found) -> _Made:
    return _Made(found.first.name if found.first else found.sandbox)


def _lookup(found: _Found) -> _Made:
    return _Made(found.first.name, {"ids": _ids(found.first)}) if found.first else _of_first(found)


def _lookup_many(found: _Found) -> _Made:
    tables = {info.name: {"ids": _ids(info)} for info in (found.first, found.second) if info}
    return _Made(body={"tables": tables} if tables else None)


def _bags(found: _Found) -> _Made:
    return _Made(found.first.name, _bags_of(found.first)) if found.first else _of_first(found)


def _bags_many(found: _Found) -> _Made:
    return _Made(
        body={"tables": {found.first.name: _bags_of(found.first)}} if found.first else None
    )


def _keys_of(found: _Found) -> _Made:
    if found.keyed is None:
        note = "**None of the tables that were looked at has keys.**"
        return replace(_of_first(found), note=note)
    return _Made(found.keyed.name, {"ids": [0]})


def _ids_of(found: _Found) -> _Made:
    made = _keys_of(found)
    return made if found.keyed is None else replace(made, body=found.keys)


def _list_keys(found: _Found) -> _Made:
    return replace(_keys_of(found), body=None)


def _neighbors(found: _Found) -> _Made:
    return replace(_of_first(found), body={"ids": [0], "k": 2})


def _update(found: _Found, values: list[float] | None, note: str) -> _Made:
    if found.trained is None or values is None:
        return _Made(found.sandbox, is_change=True)
    return _Made(found.trained.name, {"ids": [0], "values": [values]}, note, is_change=True)


def _zeros(found: _Found) -> list[float] | None:
    return [0.0] * found.trained.dim if found.trained else None


def _many(one: Callable[[_Found], _Made]) -> Callable[[_Found], _Made]:
    def made(found: _Found) -> _Made:
        alone = one(found)
        body = None if alone.body is None else {"tables": {alone.table: alone.body}}
        return _Made(body=body, note=alone.note, is_change=True)

    return made


def _scatter_add(found: _Found) -> _Made:
    return _update(found, _zeros(found), "The form's example adds zeros.")


def _apply_gradients(found: _Found) -> _Made:
    if found.trained is not None and found.trained.optimizer is None:
        return _Made(found.sandbox, is_change=True)
    return _update(found, _zeros(found), "The form's example has a gradient of zeros.")


def _assign(found: _Found) -> _Made:
    return _update(found, found.row, "The form's example assigns the values that the row has.")


def _delete_rows(found: _Found) -> _Made:
    if not found.opened:
        note = "**None of the tables that were looked at is open.**"
        return _Made(found.sandbox, note=note, is_change=True)
    note = "The form's example has no key, and deletes nothing."
    return _Made(found.opened, {"keys": []}, note, is_change=True)


def _create(found: _Found) -> _Made:
    drawn = {"rows": 1000, "dim": 8, "init": "uniform", "seed": 7}
    optimizer = {"name": "adagrad", "lr": 0.05}
    return _Made(body={"name": found.unused, **drawn, "optimizer": optimizer}, is_change=True)


def _publish(found: _Found) -> _Made:
    return _Made(found.trained.name if found.trained else found.sandbox, {}, is_change=True)


def _of_sandbox(found: _Found) -> _Made:
    note = (
        f"The form is filled in for the table `{found.sandbox}`, "
        "which the form of createTable makes."
    )
    return _Made(found.sandbox, note=note, is_change=True)


def _delete_version(found: _Found) -> _Made:
    note = (
        f"The form is filled in for the table `{found.sandbox}` as the forms of createTable, "
        "setOptimizer, rollback and setOptimizer again leave it."
    )
    return _Made(found.sandbox, note=note, is_change=True, path={"version": "2"})


def _snapshot(_found: _Found) -> _Made:
    return _Made(body={"name": SANDBOX}, is_change=True)


def _list_snapshots(_found: _Found) -> _Made:
    return _Made(is_change=True)


def _delete_snapshot(_found: _Found) -> _Made:
    note = "The form is filled in for the snapshot that the form of snapshot makes."
    return _Made(note=note, is_change=True, path={"name": SANDBOX})


def _begin_upload(found: _Found) -> _Made:
    name = f"{found.sandbox}-upload"
    body = {"upload": EXAMPLE_UPLOAD, "name": name, "dim": 2, "rows": 2}
    return _Made(body=body, is_change=True)


def _of_upload(_found: _Found) -> _Made:
    note = "The form is filled in for the upload that the form of beginUpload begins."
    return _Made(note=note, is_change=True, path={"upload": EXAMPLE_UPLOAD})


def _list_uploads(_found: _Found) -> _Made:
    return _Made(is_change=True)


_EXAMPLES: Final[Mapping[str, Callable[[_Found], _Made]]] = {
    "lookup": _lookup,
    "lookupMany": _lookup_many,
    "lookupBags": _bags,
    "lookupBagsMany": _bags_many,
    "keysOf": _keys_of,
    "idsOf": _ids_of,
    "listKeys": _list_keys,
    "scan": _of_first,
    "neighbors": _neighbors,
    "scatterAdd": _scatter_add,
    "applyGradients": _apply_gradients,
    "assign": _assign,
    "deleteRows": _delete_rows,
    "deleteRowsMany": _many(_delete_rows),
    "scatterAddMany": _many(_scatter_add),
    "applyGradientsMany": _many(_apply_gradients),
    "assignMany": _many(_assign),
    "createTable": _create,
    "publish": _publish,
    "rollback": _of_sandbox,
    "setOptimizer": _of_sandbox,
    "deleteTable": _of_sandbox,
    "deleteVersion": _delete_version,
    "snapshot": _snapshot,
    "listSnapshots": _list_snapshots,
    "deleteSnapshot": _delete_snapshot,
    "beginUpload": _begin_upload,
    "listUploads": _list_uploads,
    "getUpload": _of_upload,
    "putRows": _of_upload,
    "commitUpload": _of_upload,
    "cancelUpload": _of_upload,
}


def _ids(info: TableInfo) -> list[list[int]]:
    return [[0], [info.row_count - 1]]


def _bags_of(info: TableInfo) -> dict[str, Any]:
    return {"ids": [[0, info.row_count - 1], [], [0]], "mode": "mean"}


def _find(engine: AnyEngine, caller: Caller) -> _Found:
    states = engine.table_states()
    sandbox = _sandbox_of(caller)
    looked_at = [name for name, why in states.items() if not why and name != sandbox]
    readable, opened = [], []
    for name in looked_at[:LOOKED_AT_MAX]:
        with suppress(GatherdError):  # it was deleted meanwhile
            info = engine.table(name)
            if info.open is not None:
                opened.append(name)
            elif info.row_count:
                readable.append(info)
    trainable = [info for info in readable if info.trainable and info.dim <= EXAMPLE_DIM_MAX]
    trained = min(trainable, key=lambda info: info.optimizer is None, default=None)
    keyed = next((info for info in readable if info.key_kind), None)
    return _Found(
        first=readable[0] if readable else None,
        second=readable[1] if len(readable) > 1 else None,
        keyed=keyed,
        keys=_first_key(engine, keyed),
        trained=trained,
        row=_first_row(engine, trained),
        opened=opened[0] if opened else "",
        sandbox=sandbox,
        unused=_unused(sandbox, states),
        takes_changes=engine.updates_state() is not UpdatesState.NONE,
    )


def _first_key(engine: AnyEngine, info: TableInfo | None) -> dict[str, Any]:
    if info is None:
        return {}
    try:
        keys, _ = engine.keys_of(info.name, np.zeros(1, np.int64))
    except GatherdError:
        return {}
    told = json_keys(keys)
    return {name: told[name] for name in ("keys", "encoding")}


def _first_row(engine: AnyEngine, info: TableInfo | None) -> list[float] | None:
    if info is None:
        return None
    try:
        (row,) = engine.lookup(Lookup(info.name, np.zeros(1, np.int64))).vectors
    except GatherdError:
        return None
    values: list[float] = row.tolist()
    return values if np.isfinite(row).all() else None


def _sandbox_of(caller: Caller) -> str:
    """A name with SANDBOX in it that the caller's patterns match, if there is one."""
    patterns = ("*",) if caller.grant is None else caller.grant.tables
    for pattern in patterns:
        name = pattern.replace("*", SANDBOX, 1).replace("*", "").replace("?", "x")
        if "*" in pattern and _is_name(name):
            return name
    return SANDBOX


def _is_name(name: str) -> bool:
    try:
        check_table_name(name)
    except GatherdError:
        return False
    return True


def _unused(name: str, names: Mapping[str, str]) -> str:
    number = 1
    free = name
    while free in names:
        number += 1
        free = f"{name[: TABLE_CHARS_MAX - 8]}-{number}"
    return free
