"""`gatherd scatter-add`, `apply-gradients`, `assign`, `delete-rows`: updates, by hand.

Each update is one push, for scripts and for trying things out; a trainer uses the SDK.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gatherd import Client, UpdateResult
from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import bfloat16_to_float32
from gatherd_server.cli.options import read_rows
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE

# The dtype of bfloat16 in .npy files, as ml_dtypes saves it.
_BFLOAT16 = np.dtype("V2")

_PUSH_PARAMETERS = (
    click.option(
        "--if-version", type=click.IntRange(1), help="Only when this version of TABLE is live."
    ),
    click.option(
        "--idempotency-key",
        help="The update's name: sent again under the same one, it isn't done again.",
    ),
    target_options,
)
_UPDATE_PARAMETERS = (
    click.argument("table", type=TABLE),
    click.argument("ids", nargs=-1, metavar="[ID]..."),
    click.option(
        "--values",
        required=True,
        metavar="FILE.npy|JSON",
        help="A vector for each id: a .npy file, or JSON such as '[[0.5, 1], [0, 2]]'. For one "
        "id a flat list will do.",
    ),
    click.option(
        "--ids",
        "ids_file",
        type=click.Path(path_type=Path),
        help="A .npy file of ids, of any shape, instead of arguments; of keys with --by-key.",
    ),
    click.option("--by-key", is_flag=True, help="Take keys instead of ids."),
    click.option(
        "--create",
        is_flag=True,
        help="In an open table, give each key without a row one, which begins as its initial "
        "vector.",
    ),
    *_PUSH_PARAMETERS,
)


def _update(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """An update command, with the parameters that all have and those of the function itself."""
    return _command(name, *_UPDATE_PARAMETERS)


def _command(
    name: str, *parameters: Callable[[Callable[..., None]], Callable[..., None]]
) -> Callable[[Callable[..., None]], click.Command]:
    """A command with `parameters` and those of the function itself."""

    def decorate(function: Callable[..., None]) -> click.Command:
        for parameter in reversed(parameters):
            function = parameter(function)
        # Unknown options are taken as ids, so that `-1` is rejected as an id out of range and not
        # as an unknown option.
        return click.command(name, context_settings={"ignore_unknown_options": True})(function)

    return decorate


@_update("scatter-add")
def scatter_add(table: str, target: CommandTarget, **given: Any) -> None:
    """Add vectors to the rows of IDs; an id that is there twice gets both.

    \b
        gatherd scatter-add items 4 20 --values '[[1, 0], [0, 1]]'
        gatherd scatter-add items --ids ids.npy --values deltas.npy
    """
    with target.connect() as client:
        rows, deltas, options = _read(client, table, **given)
        _tell(client.scatter_add(table, deltas=deltas, **rows, **options))


@_update("apply-gradients")
@click.option("--lr", type=float, help="Instead of the table's learning rate.")
def apply_gradients(table: str, target: CommandTarget, lr: float | None, **given: Any) -> None:
    """Take a step of the table's optimizer by the gradients of IDs' rows.

    \b
        gatherd apply-gradients items 4 --values '[0.5, -1]' --lr 0.01
        gatherd apply-gradients words king --by-key --values gradient.npy
    """
    with target.connect() as client:
        rows, grads, options = _read(client, table, **given)
        _tell(client.apply_gradients(table, grads=grads, lr=lr, **rows, **options))


@_update("assign")
def assign(table: str, target: CommandTarget, **given: Any) -> None:
    """Replace the rows of IDs; of an id that is there twice the last vector stays.

    \b
        gatherd assign items 4 --values '[0.25, 0.1]'
        gatherd assign items --ids ids.npy --values rows.npy --data-dir ./data
        gatherd assign tags newword --by-key --create --values '[0.25, 0.1]'
    """
    with target.connect() as client:
        rows, values, options = _read(client, table, **given)
        _tell(client.assign(table, rows=values, **rows, **options))


@_command(
    "delete-rows",
    click.argument("table", type=TABLE),
    click.argument("keys", nargs=-1, metavar="[KEY]..."),
    click.option(
        "--keys",
        "keys_file",
        type=click.Path(path_type=Path),
        help="A .npy file of keys, of any shape, instead of arguments.",
    ),
    *_PUSH_PARAMETERS,
)
def delete_rows(
    table: str,
    target: CommandTarget,
    keys: tuple[str, ...],
    keys_file: Path | None,
    **options: Any,
) -> None:
    """Remove the rows of KEYs from an open table.

    A key without a row is no error: the answer says how many rows went.

    \b
        gatherd delete-rows tags newword oldword
        gatherd delete-rows users --keys gone.npy
    """
    if bool(keys) == (keys_file is not None):
        raise InvalidArgument("give the keys either as arguments or by --keys FILE")
    with target.connect() as client:
        asked: Any
        if keys_file is not None:
            asked = _load(keys_file)
        else:
            asked = read_rows(client, table, keys, by_key=True)
        _tell(client.delete_rows(table, asked, **options))


def _read(
    client: Client,
    table: str,
    *,
    ids: tuple[str, ...],
    ids_file: Path | None,
    by_key: bool,
    values: str,
    **options: Any,
) -> tuple[dict[str, Any], NDArray[Any], dict[str, Any]]:
    """The rows, as keyword `ids` or `keys`; their vectors; and the client's other arguments."""
    if bool(ids) == (ids_file is not None):
        raise InvalidArgument("give the ids either as arguments or by --ids FILE")
    asked: Any
    if ids_file is not None:
        asked = _load(ids_file)
    else:
        asked = read_rows(client, table, ids, by_key=by_key)
    vectors = _values(values)
    if len(ids) == 1 and vectors.ndim == 1:
        vectors = vectors.reshape(1, -1)
    return {"keys" if by_key else "ids": asked}, vectors, options


def _values(given: str) -> NDArray[Any]:
    if not given.lstrip().startswith("["):
        array = _load(Path(given))
        if array.dtype != _BFLOAT16:
            return array
        wide = np.empty(array.shape, np.float32)
        bfloat16_to_float32(array.view(np.uint16), wide)
        return wide
    try:
        return np.asarray(json.loads(given))
    except ValueError as error:
        raise InvalidArgument(f"--values {given[:40]!r} can't be read: {error}") from None


def _load(path: Path) -> NDArray[Any]:
    try:
        with open(path, "rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BadFile(f"{path} isn't a .npy file of numbers or strings: {error}") from None
    return array


def _tell(result: UpdateResult) -> None:
    counted = (
        (result.created, "created"),
        (result.removed, "removed"),
        (result.not_admitted, "not admitted"),
    )
    for table, version in result.versions.items():
        counts = [f", {counts[table]} {what}" for counts, what in counted if counts[table]]
        click.echo(f"{table}: version {version}, LSN {result.lsn}{''.join(counts)}")
