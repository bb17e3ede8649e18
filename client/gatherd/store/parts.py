"""Choosing one of the parts of a file: its tensors, arrays, columns or members."""

from collections.abc import Mapping
from typing import Final

from gatherd.errors import BadFile, InvalidArgument

PARTS_SHOWN_MAX: Final = 100


def list_parts(shapes: Mapping[str, str]) -> str:
    """The first of `shapes`, one per line, and the number of the others."""
    shown = list(shapes.items())[:PARTS_SHOWN_MAX]
    listed = "".join(f"\n  {key}  {shape}" for key, shape in shown)
    more = len(shapes) - PARTS_SHOWN_MAX
    return listed + (f"\n  and {more} more" if more > 0 else "")


def pick(name: str, wanted: str | None, shapes: Mapping[str, str], what: str = "tensor") -> str:
    """The entry `wanted` of file `name`, or its only one; `shapes` describes each, as text.

    InvalidArgument, listing them, when `wanted` doesn't exist, or is None and there are several.
    """
    if wanted is None and len(shapes) == 1:
        return next(iter(shapes))
    if wanted is not None and wanted in shapes:
        return wanted
    listed = list_parts(shapes)
    if wanted is None:
        if not shapes:
            raise BadFile(f"{name} holds no {what}")
        raise InvalidArgument(
            f"{name} holds {len(shapes)} {what}s; name one as {name}#{what.upper()}:{listed}"
        )
    raise InvalidArgument(f"{name} has no {what} {wanted!r}; there are:{listed or ' none'}")
