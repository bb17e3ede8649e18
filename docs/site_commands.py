"""The page of every command, made of what click knows of it: usage, text and options."""

import html
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator

import click

INTRODUCTION = """# Every command

What `gatherd COMMAND --help` prints. [The command line](../cli.md) tells what the commands have in
common.
"""


def commands_page(group: click.Group) -> str:
    """Markdown: a heading for each command, and the commands inside it below."""
    return "\n".join([INTRODUCTION, *_described(group, "gatherd", None, 2)])


def _described(
    command: click.Command, name: str, parent: click.Context | None, level: int
) -> Iterator[str]:
    # With the command's own settings: it keeps the help option that its first context gives it.
    with command.make_context(name, [], parent, resilient_parsing=True) as context:
        yield f"{'#' * level} {context.command_path}\n"
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield f"```text\n{usage}\n```\n"
        yield from _text(command.help or "")
        yield from _options(command, context)
        if isinstance(command, click.Group):
            for inner_name in command.list_commands(context):
                inner = command.get_command(context, inner_name)
                if inner is not None and not inner.hidden:
                    yield from _described(inner, inner_name, context, level + 1)


def _text(text: str) -> Iterator[str]:
    """The paragraphs; the indented lines of one that click doesn't wrap are code."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text).replace("\f", "")):
        lines = paragraph.splitlines()
        if "\b" not in lines:
            yield _shown(" ".join(line.strip() for line in lines)) + "\n"
            continue
        kept = [line for line in lines if line != "\b"]
        for is_code, run in itertools.groupby(kept, lambda line: line.startswith(" ")):
            if is_code:
                yield "```text\n" + textwrap.dedent("\n".join(run)) + "\n```\n"
            else:
                yield "  \n".join(map(_shown, run)) + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [record for record in records if record and record[1] and "--help" not in record[0]]
    if not rows:
        return
    yield "| option | |\n|---|---|"
    for names, text in rows:
        yield f"| `{names}` | {_shown(text)} |"
    yield ""


def _shown(text: str) -> str:
    """Markdown that shows `text` as it is, but for the code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_\[\]|#~])", r"\\\1", html.escape(part))
        for part in parts
    )
