"""Counts the error messages that name the next step: `python tests/support/next_steps.py`.

A message is the first argument of a call of an error class, as it is written, with {} for what is
computed. It names the next step if it says what to do, what would be right, or what there is
instead.
Messages about a fault of our own, or of a file's damage, often can't; the list shows which don't.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
CODE: Final = ("client/gatherd", "service/gatherd_server")
# The classes of errors that a user sees; faults of our own have nothing to do next.
_CLASSES: Final = frozenset(
    (
        *("InvalidArgument", "MalformedRequest", "IdOutOfRange", "KeyNotFound"),
        *("NoKeys", "NonfiniteValues", "RequestIdReused", "NotFound"),
        *("TableNotFound", "VersionNotFound", "AlreadyExists", "FailedPrecondition"),
        *("TableRefused", "TableReadOnly", "VersionMismatch", "RequestIdStale"),
        *("Unauthenticated", "PermissionDenied", "LimitExceeded", "Unavailable"),
        *("Overloaded", "DeadlineExceeded", "Unimplemented", "StorageError"),
        *("DiskFull", "TooManyFiles", "UpdatesStopped", "BadFile"),
        *("DataDirInUse", "DataDirVersion", "ClientClosed", "ForkedClient"),
        *("StartError", "ConfigError", "AddressInUse", "UsageError"),
    )
)
_TO_DO: Final = re.compile(
    r"\b(?:give|use|try|name|choose|set|send|start|stop|leave|free|take|see|unset|wait|restore|"
    r"restart|delete|replace|keep|ask|add|install|export|convert\w*|pick|make|open|say|write|mount|"
    r"did you mean|there (?:are|is)|instead|type)\b|`gatherd |--\w|=FILE|\w+=\w*\b",
    re.IGNORECASE,
)
_RIGHT: Final = re.compile(
    r"\b(?:has to|have to|must|at most|at least|valid|known (?:are|is)|is one of|one of|takes?|"
    r"needs?|is for|are for|only|reads|are read|is read|are taken|is taken|up to|between|isn't "
    r"(?:NAME|HOST|an integer)|belongs?|go together|may be|can be|allows?|it can)\b|"
    r"\b(?:is|are) (?:an? |the |true |numbers|flat|\w+ list)[^;:]*, not\b|"
    r"; (?:they|it) (?:is|are)\b|; (?:a|each|at) \w+ (?:is|has)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One error message in the source."""

    where: str
    error: str
    text: str

    @property
    def has_next_step(self) -> bool:
        return bool(_TO_DO.search(self.text) or _RIGHT.search(self.text))


def messages(root: Path = ROOT) -> Iterator[Message]:
    """Every message that is written where its error is made."""
    for folder in CODE:
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args:
                    function = node.func
                    name = function.attr if isinstance(function, ast.Attribute) else ""
                    name = function.id if isinstance(function, ast.Name) else name
                    text = _text(node.args[0])
                    if name in _CLASSES and text is not None:
                        where = f"{path.relative_to(root)}:{node.lineno}"
                        yield Message(where, name, text)


def _text(node: ast.expr) -> str | None:
    """A literal or an f-string as text; None for what is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (_text(one) if isinstance(one, ast.Constant) else "{}" for one in node.values)
        return "".join(part or "" for part in parts)
    return None


def main() -> None:
    found = list(messages())
    with_step = [one for one in found if one.has_next_step]
    print(f"{len(with_step)} of {len(found)} error messages name the next step")
    total, named = (Counter(one.error for one in some) for some in (found, with_step))
    for error, count in total.most_common():
        print(f"  {error:20} {named[error]:>4} of {count}")
    print("without:")
    for one in found:
        if not one.has_next_step:
            print(f"  {one.where}: {one.text}")


if __name__ == "__main__":
    main()
