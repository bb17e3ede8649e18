"""The names that a snapshot or a backup may have."""

import re
from typing import Final

from gatherd.errors import InvalidArgument
from gatherd.store.catalog import TABLE_NAME_PATTERN

PARTIAL_SUFFIX: Final = ".partial"
# As for a table's name: neither a path nor a hidden file.
_NAME: Final = re.compile(TABLE_NAME_PATTERN)


def is_name(name: str) -> bool:
    """Whether `name` has only characters that a snapshot's name may have."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """`name` when it can be a snapshot's, else InvalidArgument."""
    if not is_name(name):
        raise InvalidArgument(
            f"{name[:128]!r} can't name a snapshot: it takes 1 to 128 of A-Z a-z 0-9 _ . -, "
            "and begins with a letter, a digit or _"
        )
    if name.endswith(PARTIAL_SUFFIX):
        raise InvalidArgument(
            f"{name!r} can't name a snapshot: {PARTIAL_SUFFIX} is for those that aren't whole"
        )
    return name


def optional_name(name: str) -> str:
    """`name` when it can be a snapshot's, or is empty: then the server makes one."""
    return check_name(name) if name else name
