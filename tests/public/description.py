"""What a user of gatherd sees, as text: the public Python API, and the command line's help.

Annotations are written without the modules that their types come from, and with every alias
resolved, so that a private type may move. Those of OPEN parameters are left out: what they take is
a matter of type checkers, and their docstrings say it.
"""

import importlib
import inspect
import sys
import types
import typing
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ForwardRef, get_args, get_origin

import click
import numpy as np
from numpy.typing import ArrayLike

OPEN = {"missing", "dtype", "mode", "init", "optimizer"}
MODULES = (
    "gatherd",
    "gatherd.aio",
    "gatherd.busy_poll",
    "gatherd.client",
    "gatherd.errors",
    "gatherd.hooks",
    "gatherd.otel",
)
TRANSPORTS = ("grpc", "http", "http_aio")
# Imported for their class alone; their own docstrings say where the code is.
SHELLS = ("gatherd.aio", "gatherd.client")
HELP_WIDTH = 100
WIDTH = 90
# NumPy's own, whose parts are private and change.
_ARRAY_LIKE = set(get_args(ArrayLike))

_STARS: dict[object, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


def described_api() -> str:
    """Every name that the public modules define or export."""
    lines: list[str] = []
    seen: dict[int, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        lines.append(f"module {name}")
        if name not in SHELLS:
            lines += _doc(module)
        for member in _exported(module):
            value = getattr(module, member)
            where = f"{name}.{member}"
            if isinstance(value, type | types.FunctionType) and id(value) in seen:
                lines.append(f"    {member} = {seen[id(value)]}")
            else:
                seen[id(value)] = where
                lines += _indented(_described(member, value))
        lines.append("")
    for name in TRANSPORTS:
        module = importlib.import_module(f"gatherd.transports.{name}")
        classes = [one for one in _exported(module) if isinstance(getattr(module, one), type)]
        lines += [f"module {module.__name__}", *(f"    class {one}" for one in classes), ""]
    return "\n".join(lines)


def _exported(module: types.ModuleType) -> list[str]:
    """`__all__`, or what the module defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    return [
        name
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType | typing.TypeVar)
        and (
            getattr(value, "__module__", None) == module.__name__
            or (name.isupper() and module.__name__ not in SHELLS)
        )
    ]


def _described(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, type):
        yield from _class(name, value)
    elif callable(value):
        yield from _function(name, value)
    elif name == "__version__":
        yield name
    else:
        yield f"{name}: {_type(type(value))} = {value!r}"


def _class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__mro__[1:-1] if _is_public(base))
    yield f"class {name}({bases})" if bases else f"class {name}"
    yield from _indented(_signature("made", cls))
    # What a pickle of it names. A private module may change.
    yield f"    in: {cls.__module__ if _is_public(cls) else 'a private module'}"
    yield from _doc(cls)
    for member in sorted(_members(cls)):
        raw = inspect.getattr_static(cls, member)
        value = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if isinstance(value, property):
            returned = inspect.signature(_getter(value)).return_annotation
            yield f"    {member}: {_annotation(returned)}"
            yield from _indented(_doc(value))
        elif isinstance(value, types.FunctionType):
            kind = f"{type(raw).__name__} " if raw is not value else ""
            yield from _indented(_function(f"{kind}{member}", value))
        elif isinstance(value, types.MemberDescriptorType):
            yield f"    {member}: {_hint(cls, member)}"
        else:
            yield f"    {member} = {value!r}"


def _getter(value: property) -> Callable[..., Any]:
    assert value.fget is not None
    return value.fget


def _hint(cls: type, member: str) -> str:
    if member in OPEN:
        return "…"
    for base in cls.__mro__:
        if member in (hints := inspect.get_annotations(base)):
            return _annotation(hints[member])
    return "…"


def _members(cls: type) -> set[str]:
    """Public attributes and methods, also inherited ones, and special methods that do something."""
    found = set()
    for base in cls.__mro__[:-1]:
        if base.__module__.partition(".")[0] != "gatherd":
            continue
        for name, value in vars(base).items():
            is_special = name.startswith("__") and isinstance(value, types.FunctionType)
            if not name.startswith("_") or (is_special and _is_written(value, base)):
                found.add(name)
    return found - {"__init__", "__post_init__"}


def _is_written(method: types.FunctionType, cls: type) -> bool:
    """Not made by `dataclass`, whose methods follow from the class's fields."""
    return method.__code__.co_filename == sys.modules[cls.__module__].__file__


def _is_public(cls: type) -> bool:
    if cls in (Exception, BaseException, ABC):
        return False
    return not any(part.startswith("_") for part in f"{cls.__module__}.{cls.__name__}".split("."))


def _function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    awaited = "async " if inspect.iscoroutinefunction(function) else ""
    yield from _signature(f"{awaited}{name}", function)
    if not name.startswith("__"):
        yield from _doc(function)


def _signature(name: str, of: Callable[..., Any]) -> Iterator[str]:
    """On one line, or with a line for each parameter."""
    try:
        signature = inspect.signature(of)
    except ValueError:  # as of an Enum
        yield f"{name}(…)"
        return
    parameters = list(_parameters(signature.parameters.values()))
    returned = f" -> {_annotation(signature.return_annotation)}"
    line = f"{name}({', '.join(parameters)}){returned}"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"{name}("
    for parameter in parameters:
        yield f"    {parameter},"
    yield f"){returned}"


def _parameters(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """As they are written in a `def`."""
    has_star = False
    for one in parameters:
        star = _STARS.get(one.kind, "")
        if one.kind is one.KEYWORD_ONLY and not has_star:
            yield "*"
        has_star |= one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        is_open = one.name in OPEN or one.annotation is one.empty
        annotation = "" if is_open else f": {_annotation(one.annotation)}"
        default = "" if one.default is one.empty else f" = {one.default!r}"
        yield f"{star}{one.name}{annotation}{default}"


def _annotation(annotation: Any) -> str:
    """The type, by names alone."""
    if annotation is inspect.Signature.empty:
        return "…"
    if isinstance(annotation, str | ForwardRef):
        text = annotation if isinstance(annotation, str) else annotation.__forward_arg__
        return text.rpartition(".")[2] if "[" not in text else text
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        members = get_args(annotation)
        listed = [_annotation(one) for one in members if one not in _ARRAY_LIKE]
        if set(members) >= _ARRAY_LIKE:
            return " | ".join(["ArrayLike", *listed])
        return " | ".join(map(_annotation, members))
    if origin is np.ndarray:
        return f"NDArray[{_annotation(get_args(get_args(annotation)[1])[0])}]"
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, get_args(annotation)))}]"
    if isinstance(annotation, list):
        return f"[{', '.join(map(_annotation, annotation))}]"
    if origin is not None:
        return f"{_type(origin)}[{', '.join(map(_annotation, get_args(annotation)))}]"
    return _type(annotation)


def _type(one: Any) -> str:
    if one is None or one is type(None):
        return "None"
    if one is Ellipsis:
        return "..."
    return str(getattr(one, "__name__", None) or str(one).rpartition(".")[2])


def _doc(of: Any) -> Iterator[str]:
    for line in (inspect.getdoc(of) or "").splitlines():
        yield f"    | {line}".rstrip()


def _indented(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield f"    {line}"


def described_commands(cli: click.Group) -> str:
    """`--help` of the command and of every verb, in the order in which it lists them."""
    return "\n".join(_helps(cli, "gatherd", None))


def _helps(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    # As click makes it: a command keeps the help option that its first context gives it.
    with command.make_context(
        name,
        [],
        parent,
        resilient_parsing=True,
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
    ) as context:
        yield f"$ {context.command_path} --help"
        yield command.get_help(context)
        yield ""
        if isinstance(command, click.Group):
            for verb in command.list_commands(context):
                found = command.get_command(context, verb)
                assert found is not None
                yield from _helps(found, verb, context)
