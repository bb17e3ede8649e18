"""What was typed: the command that a message proposes instead, and types of arguments that know it.

A proposal is what the user typed with something left out or added, so that it can be typed as it is
printed. `Table` also completes the names of tables in a shell.
"""

import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from gatherd._suggestions import near
from gatherd.errors import GatherdError
from gatherd_server.cli.target import choose

_META: Final = "gatherd.typed"
COMPLETION_SECONDS: Final = 5.0
FILES_MAX: Final = 1000
URL_SCHEMES: Final = ("http://", "https://", "grpc://", "grpcs://", "unix:", "local:")


def keep_typed(context: click.Context, arguments: list[str]) -> None:
    """Remember the arguments that a command was typed with, for `retyped`."""
    context.meta[_META] = list(arguments)


def retyped(
    *,
    without: Collection[str] = (),
    replace: Mapping[str, list[str]] | None = None,
    add: Iterable[str] = (),
    verb: str = "",
) -> str:
    """The command as it was typed, without some parameters, with others' values replaced or added.

    `replace` is of arguments. With `verb`, that command, with the parameters that it has too.
    """
    replaced = replace or {}
    context = click.get_current_context()
    known: Collection[str] | None = None
    if verb:
        group = context.find_root().command
        assert isinstance(group, click.Group)
        known = {one.name or "" for one in group.commands[verb].params}
    words = ["gatherd", *([verb] if verb else _path(context))]
    # Options go behind the arguments, as in all examples.
    arguments: list[str] = []
    options: list[str] = []
    values, _, order = context.command.make_parser(context).parse_args(
        list(context.meta.get(_META, ()))
    )
    for parameter in dict.fromkeys(order):
        name = parameter.name or ""
        if name in without or (known is not None and name not in known):
            continue
        value = values.get(name)
        if isinstance(parameter, click.Option):
            options += _option(parameter, value)
        else:
            arguments += replaced.get(name) or _listed(value)
    return shlex.join([*words, *arguments, *options, *add])


def _path(context: click.Context) -> list[str]:
    """The names of the command, without the program's."""
    return context.command_path.split()[1:]


def with_target(verb: str, *arguments: str) -> str:
    """Another command, of the same server or data dir."""
    context = click.get_current_context()
    typed = context.command.make_parser(context).parse_args(list(context.meta.get(_META, ())))[0]
    target = [
        word
        for option, name in (("--url", "url"), ("--data-dir", "data_dir"))
        if isinstance(typed.get(name), str)
        for word in (option, typed[name])
    ]
    return shlex.join(["gatherd", verb, *arguments, *target])


def _option(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [option.opts[0] if value else option.secondary_opts[0]]
    return [word for one in _listed(value) for word in (option.opts[0], one)]


def _listed(value: Any) -> list[str]:
    if value is None or not isinstance(value, str | list | tuple):
        return []
    return [value] if isinstance(value, str) else [one for one in value if isinstance(one, str)]


def check_no_option(value: str, context: click.Context) -> None:
    """NoSuchOption for a misspelled option that was taken for an id, as `-1` has to be."""
    if value.startswith("--") and "--" not in context.meta.get(_META, ()):
        known = [opt for one in context.command.params for opt in one.opts if opt[:2] == "--"]
        raise click.NoSuchOption(value, possibilities=near(value, known), ctx=context)


def check_no_url(value: str, context: click.Context | None) -> None:
    """UsageError for a URL where a table's name belongs; it says what to type."""
    if context is None or not value.startswith(URL_SCHEMES):
        return
    typed = [one for one in context.meta.get(_META, ()) if one != value]
    command = shlex.join(["gatherd", *_path(context), *typed, "--url", value])
    raise click.UsageError(f"{value!r} is a URL, and a table's name belongs here; type: {command}")


class Table(click.types.StringParamType):
    """The name of a table of the command's target; a URL in its stead is recognized."""

    name = "table"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it was typed. UsageError for a URL."""
        check_no_url(str(value), ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The target's tables; none when it doesn't answer soon."""
        try:
            with ctx:
                target = choose(ctx.params.get("url"), ctx.params.get("data_dir"))
                with target.connect(timeout=COMPLETION_SECONDS, retries=0) as client:
                    names = [info.name for info in client.tables()]
        except (GatherdError, click.UsageError, OSError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class File(click.types.StringParamType):
    """A source of rows, which the shell completes as a file; NAME=FILE completes FILE."""

    name = "file"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files, by the shell's own rules; behind NAME= by ours, as zsh and fish ask for them."""
        name, equals, start = incomplete.partition("=")
        if not equals:
            return [CompletionItem(incomplete, type="file")]
        folder, slash, beginning = start.rpartition("/")
        try:
            entries = sorted(os.scandir(f"{folder}{slash}" or "."), key=lambda one: one.name)
        except OSError:
            return []
        return [
            CompletionItem(f"{name}={folder}{slash}{one.name}{'/' * one.is_dir()}")
            for one in entries
            if one.name.startswith(beginning)
        ][:FILES_MAX]


TABLE: Final = Table()
FILE: Final = File()
