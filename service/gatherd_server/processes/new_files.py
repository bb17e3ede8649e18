"""A worker's part in replacing served files: see replacing.py, which is the supervisor's."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gatherd.errors import GatherdError
from gatherd.store.table import Table
from gatherd_server.engine.tables import ServedTables
from gatherd_server.processes.channel import Channel
from gatherd_server.types import TableSource


class NewFiles:
    """Maps new files beside those that are served, and switches when it is asked to."""

    def __init__(
        self, tables: ServedTables, sources: Sequence[TableSource], channel: Channel
    ) -> None:
        self._tables = tables
        self._sources = sources
        self._channel = channel
        self._mapped: list[Table] = []
        self._mapping: asyncio.Task[None] | None = None

    def take(self, told: dict[str, Any]) -> None:
        """Take one step that the supervisor asks for. On the event loop."""
        match told["files"]:
            case "map":
                self._forget()
                places = told["places"]
                fds = self._channel.take_fds(len(places))
                self._mapping = asyncio.ensure_future(self._map(told["number"], places, fds))
            case "switch":
                self._tables.replace_files(self._mapped)
                self._forget()
            case "forget":
                self._forget()

    def _forget(self) -> None:
        if self._mapping is not None:
            self._mapping.cancel()
        self._mapping, self._mapped = None, []

    async def _map(self, number: int, places: list[list[int]], fds: list[int]) -> None:
        def mapped() -> list[Table]:
            try:
                return [
                    self._tables.map_file(self._sources[place], fd, version)
                    for (place, version), fd in zip(places, fds, strict=True)
                ]
            finally:
                for fd in fds:
                    with suppress(OSError):
                        os.close(fd)

        try:
            # On a thread, because it reads the files; lookups go on.
            self._mapped = await asyncio.to_thread(mapped)
        except GatherdError as error:
            self._channel.tell_mapped(number, error.message)
        else:
            self._channel.tell_mapped(number, "")
