"""The options by which a command says how a table is trained."""

from collections.abc import Callable, Iterable

import click

from gatherd.errors import InvalidArgument
from gatherd_server.training.optimizer import LR_DEFAULT, Optimizer, OptimizerName

OPTIMIZERS = click.Choice([name.value for name in OptimizerName])


def optimizer_options(command: Callable[..., None]) -> Callable[..., None]:
    """--optimizer, --lr and --optimizer-option."""
    return click.option(
        "--optimizer",
        type=OPTIMIZERS,
        help="Make the table trainable: give it this one's slots.",
    )(optimizer_values(command))


def optimizer_values(command: Callable[..., None]) -> Callable[..., None]:
    """--lr and --optimizer-option, of an optimizer that is given otherwise."""
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
    """What the three options ask for; InvalidArgument for what no or this optimizer hasn't."""
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
