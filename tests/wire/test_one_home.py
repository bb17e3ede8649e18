"""What a client and a server have to agree on is written in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import gatherd
import gatherd_proto
import gatherd_server
from gatherd_proto import errors, headers
from gatherd_proto.procedures import PATH_PREFIX, PROCEDURES, SERVICES
from gatherd_server.wire.codes import CODES
from support.error_classes import ERROR_CLASSES

ROOTS = [Path(str(one.__file__)).parent for one in (gatherd, gatherd_server, gatherd_proto)]
SOURCES = {
    path: ast.parse(path.read_text())
    for root in ROOTS
    for path in root.rglob("*.py")
    if "_pb2" not in path.name
}
CONSTANTS = [
    *("SESSION_BYTES", "LIVE_VERSION", "KEY_CHARS_MAX", "DIM_MAX", "ROWS_MAX", "TOKEN_CHARS_MAX"),
    *("PIECE_BYTES", "TIMEOUT_DIGITS_MAX", "PATH_PREFIX", "ERROR_DOMAIN"),
    *("ERROR_INFO_TYPE", "DETAILS_TRAILER", "RETRY_AFTER", "AUTHORIZATION"),
]
# A table of REST's own statuses has fewer.
ROWS_MIN = 10
# Spelled in full nowhere else, neither as text nor as bytes.
SPELLED = [
    *(procedure.path for procedure in PROCEDURES),
    *(procedure.name for procedure in PROCEDURES),
    *(PATH_PREFIX, *SERVICES),
    *(errors.ERROR_INFO_TYPE, errors.DETAILS_TRAILER),
    *(headers.RETRY_AFTER, headers.CONNECT_VERSION, headers.CONNECT_TIMEOUT),
    *(headers.PROTO, headers.JSON, headers.PROBLEM_JSON),
]


def assigned(tree: ast.Module) -> Iterator[str]:
    """The names that a module gives values of its own at its top level."""
    for node in tree.body:
        targets: list[ast.expr] = [node.target] if isinstance(node, ast.AnnAssign) else []
        targets += node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            for one in ast.walk(target):
                if isinstance(one, ast.Name):
                    yield one.id


def spelled(tree: ast.Module) -> Iterator[str]:
    """The module's strings and bytes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value
            yield text.decode("latin-1") if isinstance(text, bytes) else text


def test_each_constant_is_assigned_once() -> None:
    homes = {
        name: [path.name for path, tree in SOURCES.items() if name in assigned(tree)]
        for name in CONSTANTS
    }
    assert {name: found for name, found in homes.items() if len(found) != 1} == {}


def test_each_name_on_a_wire_is_spelled_once() -> None:
    # A path is made of its service and its name.
    paths = {procedure.path for procedure in PROCEDURES}
    found: dict[str, list[str]] = {text: [] for text in SPELLED}
    for path, tree in SOURCES.items():
        if path.name == "__init__.py":
            continue  # the SDK exports a class that has a procedure's name
        for text in spelled(tree):
            if text in found or text.lower() in found:
                found[text if text in found else text.lower()].append(path.name)
    wrong = {text: places for text, places in found.items() if len(places) != (text not in paths)}
    assert wrong == {}


def test_one_table_has_the_codes_of_error_classes() -> None:
    classes = {cls.__name__ for cls in ERROR_CLASSES}
    tables = [
        path.name
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        and any(says_code(part) for value in node.values for part in ast.walk(value))
        and sum(name_of(key) in classes for key in node.keys) >= ROWS_MIN
    ]
    assert tables == ["codes.py"]


def says_code(part: ast.AST) -> bool:
    """Whether it is the name of a code, or one of grpc's members; exit codes are no codes."""
    if isinstance(part, ast.Attribute):
        return part.attr.lower() in CODES.values() and name_of(part.value) != "ExitCode"
    return isinstance(part, ast.Constant) and part.value in CODES.values()


def name_of(key: ast.expr | None) -> str:
    """`Overloaded` of both `Overloaded` and `errors.Overloaded`."""
    if isinstance(key, ast.Attribute):
        return key.attr
    return key.id if isinstance(key, ast.Name) else ""
