"""The names of folders in staging: `gatherd import` draws 32 hex digits."""

import re
from typing import Final

from gatherd.errors import InvalidArgument

_STAGED: Final = re.compile(r"[0-9a-f]{32}")


def check_staged(name: str) -> str:
    """`name` when it can name a folder in staging, and so is no path; else InvalidArgument."""
    if not _STAGED.fullmatch(name):
        raise InvalidArgument(f"{name[:128]!r} isn't the name of a staged folder: 32 hex digits")
    return name
