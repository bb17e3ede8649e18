"""The groups of commands: how each command ends by an error, and what help says of it."""

import functools
from collections.abc import Callable
from typing import Any

import click

from gatherd.errors import GatherdError
from gatherd_server.cli.exit_codes import exit_code
from gatherd_server.cli.next_steps import explained
from gatherd_server.cli.typed import keep_typed

_SHORT_HELP_CHARS_MAX = 200


class Verbs(click.Group):
    """Commands in the order in which they were added.

    A GatherdError ends a command by its message, the next step and its exit status. Help never cuts
    a command's first sentence off.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, whose errors end it as above."""
        if cmd.callback is not None:
            cmd.callback = _ending(cmd.callback)
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in their order."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, and its arguments, which `retyped` needs."""
        name, command, rest = super().resolve_command(ctx, args)
        keep_typed(ctx, rest)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with its whole first sentence, on several lines if need be."""
        shown = [
            (name, command.get_short_help_str(_SHORT_HELP_CHARS_MAX))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(shown)


class Subverbs(Verbs):
    """Commands below a verb, one of which is meant when none is named: `versions words` lists."""

    default = "list"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default's name before arguments that don't begin with a command's."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def _ending(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def ended(*arguments: Any, **options: Any) -> Any:
        try:
            return callback(*arguments, **options)
        except GatherdError as error:
            context = click.get_current_context()
            failure = click.ClickException(explained(error, context))
            failure.exit_code = exit_code(type(error))  # type: ignore[misc]  # click means its own
            raise failure from None

    return ended
