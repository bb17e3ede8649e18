"""The `gatherd` command, also in an install that is only the client."""

import gc
import os
import sys

from gatherd_server.processes.built_kernels import use_built_kernels

SERVER_PACKAGES = {
    "click",
    "fastapi",
    "grpc_health",
    "grpc_reflection",
    "httptools",
    "numba",
    "orjson",
    "pydantic",
    "starlette",
    "uvicorn",
    "uvloop",
}


def fill_standard_files() -> None:
    """Open /dev/null as standard input, output or error where the parent process closed it.

    Otherwise a socket would get its number, and printed text would go there.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def main() -> None:
    """Run the command line, or say what to install for it."""
    fill_standard_files()
    # Before anything imports numba.
    use_built_kernels()
    # A fifth of the imports' time would be the collector's, which finds nothing.
    gc.disable()
    try:
        from gatherd_server.cli.main import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in SERVER_PACKAGES:
            raise
        sys.exit(
            f"gatherd: the command needs the server extra ({error.name} isn't installed):\n"
            "    pip install 'gatherd[server]'\n"
            "The base install is the client: from gatherd import Client"
        )
    gc.freeze()
    gc.enable()
    cli(prog_name="gatherd")


if __name__ == "__main__":
    main()
