"""Options that several commands share, and the functions that read their values."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from gatherd import Client, TableInfo
from gatherd.errors import InvalidArgument, NoKeys
from gatherd.store.catalog import read_default_vector
from gatherd.store.initializer import Initializer, Parameter
from gatherd_server.cli.typed import check_no_option, retyped
from gatherd_server.training.optimizer import LR_DEFAULT, Optimizer, OptimizerName

default_vector_option = click.option(
    "--default-vector",
    type=click.Path(path_type=Path),
    help="FILE.npy of shape (dim,): the vector for missing ids, instead of the mean of the rows.",
)

OPTIMIZERS = click.Choice([name.value for name in OptimizerName])


def optimizer_options(command: Callable[..., None]) -> Callable[..., None]:
    """--optimizer, --lr and --optimizer-option."""
    return click.option(
        "--optimizer",
        type=OPTIMIZERS,
        help="What applies gradients, with its slots.  [default: none]",
    )(optimizer_values(command))


frozen_option = click.option(
    "--frozen", is_flag=True, help="Make a table that takes no updates, as one of float64."
)


def optimizer_values(command: Callable[..., None]) -> Callable[..., None]:
    """--lr and --optimizer-option, for an optimizer that is given in another way."""
    command = click.option(
        "--optimizer-option",
        multiple=True,
        metavar="NAME=VALUE",
        help="Another option of the optimizer, as momentum=0.9 or padding_id=0; may be repeated.",
    )(command)
    return click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        help=f"Learning rate.  [default: {LR_DEFAULT:g}]",
    )(command)


def read_optimizer(
    name: str | None, lr: float | None, optimizer_option: Iterable[str]
) -> Optimizer | None:
    """The optimizer of the three options, None without one.

    InvalidArgument for an option given without an optimizer, or one that this optimizer doesn't
    have.
    """
    options = read_options(lr, optimizer_option)
    if name is None:
        if options:
            flag = "--optimizer-option" if lr is None else "--lr"
            raise InvalidArgument(f"{flag} is an optimizer's; give --optimizer too")
        return None
    return Optimizer.parse(name, options)


def read_initializer(name: str, init_option: Iterable[str]) -> Initializer:
    """The initializer of --init and --init-option; raises as `Initializer.parse` does."""
    parameters: dict[str, Parameter] = {}
    for text in init_option:
        parameter, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgument(f"--init-option {text!r} isn't NAME=VALUE")
        if parameter in parameters:
            raise InvalidArgument(f"the initializer's {parameter} is given twice")
        try:
            parameters[parameter] = float(value)
        except ValueError:
            parameters[parameter] = value
    return Initializer.parse(name, parameters)


def read_options(lr: float | None, optimizer_option: Iterable[str]) -> dict[str, float]:
    """The options of --lr and --optimizer-option. InvalidArgument for one that is given twice."""
    options: dict[str, float] = {} if lr is None else {"lr": lr}
    for text in optimizer_option:
        option, value = _option(text)
        if option in options:
            raise InvalidArgument(f"the optimizer's {option} is given twice")
        options[option] = value
    return options


def _option(text: str) -> tuple[str, float]:
    option, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = None
    if not equals or value is None:
        raise InvalidArgument(f"--optimizer-option {text!r} isn't NAME=NUMBER")
    return option, value


def read_default(path: Path | None, dim: int) -> NDArray[np.float32] | None:
    """The default vector in `path`; InvalidArgument when it isn't of the table's dim."""
    if path is None:
        return None
    vector = read_default_vector(path)
    if vector.shape != (dim,):
        raise InvalidArgument(f"{path} has shape {vector.shape}; the table's dim is {dim}")
    return vector


def read_rows(
    client: Client, table: str, typed: tuple[str, ...], *, by_key: bool
) -> list[int] | list[str]:
    """The ids, or the keys, that were typed; InvalidArgument, or NoKeys, proposes a command."""
    context = click.get_current_context()
    for one in typed:
        check_no_option(one, context)
    numbers = _integers(typed)
    if not by_key and numbers is not None:
        return numbers
    if not by_key:
        raise InvalidArgument(_no_ids(client.table(table), typed))
    kind = client.table(table).key_kind
    if not kind:
        raise NoKeys(_no_keys(client.table(table), numbers))
    if kind == "bytes":
        return list(typed)
    if numbers is None:
        wrong = next(one for one in typed if _integers((one,)) is None)
        raise InvalidArgument(f"the keys of table {table!r} are {kind}; {wrong!r} isn't an integer")
    return numbers


def _integers(typed: tuple[str, ...]) -> list[int] | None:
    try:
        return [int(one) for one in typed]
    except ValueError:
        return None


def _no_ids(table: TableInfo, typed: tuple[str, ...]) -> str:
    """The message about ids of which one isn't an integer."""
    wrong = next(one for one in typed if _integers((one,)) is None)
    what = f"{wrong!r} isn't an id, which is an integer from 0 to {table.rows - 1}"
    listed = _listed(wrong)
    if listed:
        add = () if _integers(tuple(listed)) is not None else ("--by-key",)
        return f"{what}; without brackets: {retyped(replace={'ids': listed}, add=add)}"
    if table.key_kind == "bytes":
        return f"{what}; to look up by key: {retyped(add=('--by-key',))}"
    has = "no keys" if not table.key_kind else f"{table.key_kind} keys, which are integers"
    return f"{what}; table {table.name!r} has {has}: {retyped(replace={'ids': ['0']})}"


def _no_keys(table: TableInfo, numbers: list[int] | None) -> str:
    """The message about keys asked of a table that has none."""
    by_id = {"ids": ["0"]} if numbers is None else {}
    return (
        f"table {table.name!r} has no keys; its rows have the ids 0 to {table.rows - 1}: "
        f"{retyped(without=('by_key',), replace=by_id)}"
    )


def _listed(text: str) -> list[str]:
    """The items of a JSON list that was typed as one argument, as arguments; [] if it is none."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return []
    is_list = isinstance(items, list) and all(isinstance(one, str | int) for one in items)
    return [str(one) for one in items] if is_list else []
