"""The limit of open files of this process: raised at the start, and compared with its needs.

Tables need none (gatherd.store.mapping); connections and files that are served in place do.
"""

import resource
from contextlib import suppress
from typing import Final

from gatherd_server.errors import StartError
from gatherd_server.settings import ServeSettings
from gatherd_server.types import SPARE_CONNECTIONS

# For the process itself: the log, sockets, event loops, and the files of a change or a snapshot.
OWN_DESCRIPTORS: Final = 128


def raise_limit() -> int:
    """Raise the limit of open files as far as this process may; return the new limit.

    Processes that it starts have it too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems have a maximum below the hard limit that they report.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check_limit(settings: ServeSettings, limit: int) -> None:
    """StartError unless a process of the server may open all files that `settings` allow."""
    needed = needed_descriptors(settings)
    if limit in (resource.RLIM_INFINITY, -1) or needed <= limit:
        return
    connections = settings.connections_max + settings.grpc_connections_max
    over = needed - limit
    fitting = max(1, (connections - over) // 2)
    hint = (
        f" or set connections_max and grpc_connections_max lower, as to {fitting} each"
        if connections - over > 1
        else ""
    )
    raise StartError(
        f"this process may have {limit} files open, and may need {needed}: {connections} for "
        f"connections, {len(settings.tables)} for files, the rest for itself. Raise the hard limit "
        f"(`ulimit -Hn`; LimitNOFILE= of systemd, --ulimit nofile= of docker){hint}"
    )


def needed_descriptors(settings: ServeSettings) -> int:
    """How many files a process of the server may have open at once."""
    return (
        OWN_DESCRIPTORS
        + settings.workers
        + len(settings.tables)
        + settings.connections_max
        + SPARE_CONNECTIONS
        + settings.grpc_connections_max
    )
