"""`gatherd kernels`: compiles ahead what the first `gatherd serve` would compile."""

import os
import sys
import time
from pathlib import Path

import click

from gatherd.errors import FailedPrecondition
from gatherd_server.cli.progress import Progress, is_terminal
from gatherd_server.processes.compiling import (
    COMPILING,
    are_compiled,
    cache_folder,
    compile_kernels,
)
from gatherd_server.processes.kernel_cache import use_kernel_cache


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="GATHERD_DATA_DIR",
    help="That of the server: it keeps the kernels if the user's cache folder can't.",
)
def kernels(data_dir: Path | None) -> None:
    """Compile the kernels ahead, so that the first start doesn't.

    \b
        gatherd kernels && gatherd serve --data-dir ./data

    They are kept in the folder where `gatherd serve` of the same user looks for them:
    NUMBA_CACHE_DIR, else the user's cache folder, else the data dir. All cores compile at once.
    """
    use_kernel_cache(data_dir)
    folder = cache_folder()
    if folder is None and "NUMBA_CACHE_DIR" not in os.environ:
        raise FailedPrecondition(
            "no folder for compiled kernels can be written; set NUMBA_CACHE_DIR to one"
        )
    if are_compiled():
        where = folder or f"{os.environ['NUMBA_CACHE_DIR']}, which is only read"
        click.echo(f"every kernel is compiled already, in {where}")
        return
    begin = time.monotonic()
    with Progress(COMPILING, unit="modules") as shown:
        for progress in compile_kernels():
            shown.done, shown.total = progress.done, progress.total
            if not is_terminal(sys.stderr):
                seconds = time.monotonic() - begin
                click.echo(
                    f"{COMPILING}: {progress.done} of {progress.total} modules, {seconds:.0f} s"
                )
    if not are_compiled():
        raise FailedPrecondition("not every kernel could be compiled")
    click.echo(f"every kernel is compiled, in {folder}")
