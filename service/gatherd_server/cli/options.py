"""Options that several commands share, and the functions that read their values."""

from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.catalog import read_default_vector
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
        help="Make the table trainable: give it this one's slots.",
    )(optimizer_values(command))


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
    options: dict[str, float] = {} if lr is None else {"lr": lr}
    for text in optimizer_option:
        option, value = _option(text)
        if option in options:
            raise InvalidArgument(f"the optimizer's {option} is given twice")
        options[option] = value
    if name is None:
        if options:
            flag = "--optimizer-option" if lr is None else "--lr"
            raise InvalidArgument(f"{flag} is an optimizer's; give --optimizer too")
        return None
    return Optimizer.parse(name, options)


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


def integer(text: str) -> int:
    """An id or key from the command line."""
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} isn't an integer; string keys need --by-key") from None
