"""Checks of a start; with `gatherd serve --check` all of them, without writing anything.

Left out on purpose: whether the ports are free, because a running server has them, and a data dir's
checksums, which `gatherd verify` compares.
"""

import os
from collections.abc import Iterator

from gatherd.errors import BadFile, GatherdError
from gatherd.store.catalog import open_table, read_catalog
from gatherd.store.shards import open_rows
from gatherd_server.access.tls import Tls
from gatherd_server.access.token_file import TokenFile
from gatherd_server.access.web import ANY_ORIGIN
from gatherd_server.engine.tables import open_source
from gatherd_server.errors import ConfigError
from gatherd_server.processes.descriptors import check_limit, raise_limit
from gatherd_server.processes.sockets import check_loopback, resolved
from gatherd_server.settings import ServeSettings
from gatherd_server.types import TableSource


def check_start(settings: ServeSettings) -> Iterator[str]:
    """Check settings, secrets, addresses, files and data dir; yields a line for each that is fine.

    Raises the error of a start. BadFile, of all damaged tables, for a data dir that has some.
    """
    sources = settings.sources()
    check_settings(settings, sources)
    check_limit(settings, raise_limit())
    yield "settings: ok"
    is_authenticated = check_secrets(settings)
    yield f"tokens and TLS: ok, {_secrets(settings)}"
    for name, address in (("http", settings.http), ("grpc", settings.grpc)):
        host = resolved(f"--{name}", address)
        if not is_authenticated:
            check_loopback(name, host)
        yield f"{name} address: ok, {address}"
    for source in sources:
        yield _checked_file(source)
    if settings.data_dir is not None:
        yield from _checked_data_dir(settings, {source.name for source in sources})


def check_settings(settings: ServeSettings, sources: list[TableSource]) -> None:
    """ConfigError when there is nothing to serve, or settings don't go together."""
    if not sources and settings.data_dir is None:
        raise ConfigError("nothing to serve: give NAME=FILE, or --data-dir with tables in it")
    settings.writer_limits()


def named_twice(table: str) -> ConfigError:
    """The error for a file that is to be served by the name of a table in the data dir."""
    return ConfigError(
        f"table {table!r} is in the data dir already, or an alias there", {"settings": "tables"}
    )


def check_secrets(settings: ServeSettings) -> bool:
    """Whether the server authenticates its clients, or may do without.

    ConfigError for tokens and certificates that the workers couldn't use.
    """
    if settings.tokens is not None:
        TokenFile(settings.tokens)
    files = settings.tls_files()
    if files is not None:
        Tls(files)
    if settings.tokens is not None and settings.insecure:
        raise ConfigError(
            "insecure means without tokens, and tokens are given; leave one out",
            {"settings": "insecure tokens"},
        )
    web = settings.web()
    if ANY_ORIGIN in web.cors_origins and settings.tokens is None and not settings.insecure:
        raise ConfigError(
            "cors_origins * lets a page of any site change and delete tables by the browser of "
            "whoever looks at it: give --tokens FILE too, or name the origins, or give --insecure",
            {"settings": "cors_origins"},
        )
    return settings.tokens is not None or settings.tls_client_ca is not None or settings.insecure


def _secrets(settings: ServeSettings) -> str:
    tokens = f"tokens of {settings.tokens}" if settings.tokens else "no tokens"
    return f"{tokens}, {'TLS' if settings.tls_cert else 'no TLS'}"


def _checked_file(source: TableSource) -> str:
    fd = open_rows(source.path, source.tensor)
    try:
        table = open_source(source, fd)
    finally:
        os.close(fd)
    return f"{source.name}: ok, {table.row_count} rows of {table.dim} {table.dtype.value}"


def _checked_data_dir(settings: ServeSettings, files: set[str]) -> Iterator[str]:
    assert settings.data_dir is not None
    if not settings.data_dir.is_dir():
        raise ConfigError(
            f"data dir {settings.data_dir} isn't there; `gatherd import` and `gatherd create` make "
            "one",
            {"settings": "data_dir"},
        )
    if not any(settings.data_dir.iterdir()):
        yield f"data dir {settings.data_dir}: ok, empty"
        return
    damaged = []
    catalog = read_catalog(settings.data_dir)
    for name in sorted(files & {*catalog.tables, *catalog.aliases}):
        raise named_twice(name)
    for name, entry in sorted(catalog.tables.items()):
        try:
            table = open_table(settings.data_dir, name, entry.live, entry.folder)
        except GatherdError as error:
            damaged.append(f"table {name!r} would be refused: {error.message}")
            continue
        yield f"{name}: ok, {table.row_count} rows of {table.dim} {table.dtype.value}"
    if damaged:
        raise BadFile("; ".join(damaged))
