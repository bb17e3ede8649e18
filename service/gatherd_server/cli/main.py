"""The `gatherd` command: the group of all commands."""

import click
from click.shell_completion import get_completion_class

from gatherd_server.build import this_build
from gatherd_server.cli.backups import backup, backups, restore
from gatherd_server.cli.bench import bench
from gatherd_server.cli.creating import create
from gatherd_server.cli.describing import info, ping
from gatherd_server.cli.exporting import export
from gatherd_server.cli.importing import import_table, publish
from gatherd_server.cli.inspecting import plan, verify
from gatherd_server.cli.kernels import kernels
from gatherd_server.cli.keys import keys
from gatherd_server.cli.looking_up import lookup, tables
from gatherd_server.cli.neighbors import neighbors
from gatherd_server.cli.rows import rows
from gatherd_server.cli.serving import serve, show_config
from gatherd_server.cli.snapshots import snapshots
from gatherd_server.cli.tokens import token
from gatherd_server.cli.top import top
from gatherd_server.cli.updates import apply_gradients, assign, delete_rows, scatter_add
from gatherd_server.cli.verbs import Verbs
from gatherd_server.cli.versions import delete, rollback, set_optimizer, snapshot, versions
from gatherd_server.processes.descriptors import raise_limit


def _print_version(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    """Asked for only here, because in a checkout it starts git."""
    if given and not ctx.resilient_parsing:
        click.echo(str(this_build()))
        ctx.exit()


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and the commit, and exit.",
)
def cli() -> None:
    """Serve embedding tables over the network as if they were local arrays.

    \b
    Serve a file where it lies, then look rows 4 and 20 up:
        gatherd serve words=vectors.npy
        gatherd lookup words 4 20
    \b
    Keep tables in a data dir:
        gatherd import words vectors.npy --data-dir ./data
        gatherd create items --rows 1000000 --dim 64 --init uniform --data-dir ./data
        gatherd serve --data-dir ./data --workers 2
    """
    raise_limit()


cli.add_command(serve)
for command in (create, import_table, publish, plan, verify, export):
    cli.add_command(command)
for command in (tables, info, keys, rows, lookup, neighbors):
    cli.add_command(command)
for command in (scatter_add, apply_gradients, assign):
    cli.add_command(command)
for command in (delete_rows,):
    cli.add_command(command)
for command in (versions, rollback, set_optimizer, delete, snapshot, snapshots):
    cli.add_command(command)
for command in (token, ping, bench, top):
    cli.add_command(command)
for command in (backup, backups, restore, kernels, show_config):
    cli.add_command(command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
        eval "$(gatherd completion bash)"         # in ~/.bashrc
        eval "$(gatherd completion zsh)"          # in ~/.zshrc
        gatherd completion fish > ~/.config/fish/completions/gatherd.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "gatherd", "_GATHERD_COMPLETE").source())
