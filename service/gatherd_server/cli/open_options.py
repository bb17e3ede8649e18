"""The options of `gatherd create` that make an open table, whose rows come and go."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from gatherd.errors import InvalidArgument
from gatherd.store.initializer import Initializer
from gatherd.store.open_spec import (
    ADMIT_AFTER_MAX,
    ROWS_MAX_DEFAULT,
    ROWS_MAX_MOST,
    TTL_SECONDS_MAX,
    OnFull,
    OnMissing,
    OpenSpec,
)
from gatherd_server.wire.checks import open_spec

F = TypeVar("F", bound=Callable[..., Any])

_DURATION: Final = re.compile(r"([0-9]{1,12})([smhdw]?)")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


class Duration(click.types.StringParamType):
    """Whole seconds, or a number with s, m, h, d or w behind it."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The seconds; a usage error for anything else."""
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 12h, 30d or 4w", param, ctx)
        return int(found[1]) * _UNIT_SECONDS[found[2]]


_OPTIONS: Final = (
    click.option(
        "--keys",
        type=click.Choice(["int64", "uint64", "string"]),
        help="Make an open table: it has such keys, no rows yet, and grows by what is pushed.",
    ),
    click.option(
        "--rows-max",
        type=click.IntRange(1, ROWS_MAX_MOST),
        help=f"The most rows that an open table can have; {ROWS_MAX_DEFAULT:,} by default.",
    ),
    click.option(
        "--on-missing",
        type=click.Choice([one.value for one in OnMissing]),
        help="What a push does with a key of an open table that has no row, unless it says to "
        "create it; error by default.",
    ),
    click.option(
        "--admit-after",
        type=click.IntRange(1, ADMIT_AFTER_MAX),
        help="A key of an open table gets its row when it was pushed so often; at once by default.",
    ),
    click.option(
        "--on-full",
        type=click.Choice([one.value for one in OnFull]),
        help="What a push does that needs a row of a full open table; error by default.",
    ),
    click.option(
        "--ttl",
        type=Duration(),
        metavar="DURATION",
        help="Remove rows of an open table that weren't pushed for so long: 90s, 15m, 12h, 30d.",
    ),
    click.option(
        "--touch-on-lookup",
        is_flag=True,
        help="Lookups count as pushes do, for --ttl and --on-full evict-lru; they are sampled.",
    ),
)


def open_options(function: F) -> F:
    """The options, which `read_open` reads."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_open(
    rows: int | None, initializer: Initializer, seed: int | None, given: Mapping[str, Any]
) -> OpenSpec | None:
    """The open table that the options ask for; None for a closed one, which has --rows.

    InvalidArgument, naming the option, for those that don't go together.
    """
    if given["keys"] is None:
        named = [name for name, value in given.items() if value]
        if named:
            raise InvalidArgument(
                f"--{named[0].replace('_', '-')} is of an open table; give --keys"
            )
        if rows is None:
            raise InvalidArgument(
                "give --rows, or for an open table, which begins without rows, --keys"
            )
        return None
    if rows is not None:
        raise InvalidArgument(
            "--rows and --keys: an open table begins without rows; --rows-max is the most that it "
            "can have"
        )
    if given["ttl"] == 0:
        raise InvalidArgument("--ttl 0 leaves no time to look a row up; leave it out for none")
    if given["ttl"] is not None and given["ttl"] > TTL_SECONDS_MAX:
        raise InvalidArgument(f"--ttl is {given['ttl']} seconds; at most {TTL_SECONDS_MAX}")
    return open_spec(
        keys=given["keys"],
        init=initializer,
        rows_max=given["rows_max"],
        seed=seed,
        on_missing=given["on_missing"] or "",
        admit_after=given["admit_after"],
        on_full=given["on_full"] or "",
        ttl_seconds=given["ttl"],
        touch_on_lookup=given["touch_on_lookup"],
    )
