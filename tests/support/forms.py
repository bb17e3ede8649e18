"""The order in which every form of the API's page succeeds as it is filled in."""

from collections.abc import Iterable

# What makes the table that others' examples are of comes first, and what removes it last.
LAST = (
    *("beginUpload", "putRows", "getUpload", "cancelUpload"),
    *("beginUpload", "putRows", "commitUpload"),
    *("snapshot", "deleteSnapshot"),
    *("cloneTable", "replaceTable", "renameTable", "setAlias", "deleteAlias"),
    *("setOptimizer", "rollback", "setOptimizer", "deleteVersion", "deleteTable"),
)


def in_order(operations: Iterable[str]) -> list[str]:
    """The ids of operations, some of them twice."""
    return [*(name for name in operations if name not in LAST), *LAST]
