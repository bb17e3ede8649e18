"""`gatherd info` and `gatherd ping`: everything about a table, and whether a server answers."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gatherd import ServerInfo, TableInfo
from gatherd.errors import BadFile, Unavailable
from gatherd.store.catalog import version_dir
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.storage.trainable import read_manifest

MB = 1e6


@click.command()
@click.argument("table", type=TABLE)
@target_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def info(table: str, target: CommandTarget, as_json: bool) -> None:
    """Print everything that is known of TABLE.

    Of a data dir (--data-dir) also where its files are, what they take, and what they came from.
    """
    with target.connect() as client:
        found = client.table(table)
    document: dict[str, Any] = asdict(found)
    if target.data_dir is not None:
        document["files"] = _files(target.data_dir, found)
    if as_json:
        click.echo(json.dumps(document))
        return
    click.echo(table)
    for name, value in _lines(document):
        click.echo(f"  {name:10} {value}")


def _files(data_dir: Path, info: TableInfo) -> dict[str, Any]:
    """Each version's folder, with its bytes; and where the live one's rows came from."""
    versions = {}
    for version in info.versions:
        folder = version_dir(data_dir, info.name, version)
        # Of a version that is deleted meanwhile, files are missing.
        with suppress(OSError):
            byte_count = sum(path.stat().st_size for path in folder.iterdir())
            versions[str(version)] = {"path": str(folder), "bytes": byte_count}
    origin: object = None
    with suppress(BadFile):
        origin = read_manifest(version_dir(data_dir, info.name, info.version)).get("origin")
    return {"versions": versions, "origin": origin}


def _lines(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if document["refused"]:
        yield "refused", document["refused"]
    else:
        in_memory = document["resident_bytes"] / (document["rows_bytes"] or 1)
        shape = f"{document['rows']} of {document['dim']} {document['dtype']}"
        yield "rows", f"{shape}, {document['rows_bytes'] / MB:.1f} MB, {in_memory:.0%} in memory"
        keys = document["key_kind"]
        yield "keys", f"{keys}, {document['keys_bytes'] / MB:.1f} MB" if keys else "none"
        yield "updates", _updates(document)
        if document["open"] is not None:
            yield "open", _open(document["open"])
    others = [str(one) for one in document["versions"] if one != document["version"]]
    yield "version", f"{document['version']} is live; also {', '.join(others) or 'none'}"
    if document["lsn"]:
        yield "LSN", str(document["lsn"])
    files = document.get("files", {})
    for version, one in files.get("versions", {}).items():
        yield f"v{version}", f"{one['bytes'] / MB:.1f} MB in {one['path']}"
    if files.get("origin") is not None:
        yield "origin", json.dumps(files["origin"])


def _open(given: dict[str, Any]) -> str:
    parts = [f"at most {given['rows_max']} rows", f"on missing {given['on_missing']}"]
    if given["admit_after"] > 1:
        parts.append(f"admitted after {given['admit_after']} updates")
    parts.append(f"on full {given['on_full']}")
    if given["ttl_seconds"] is not None:
        parts.append(f"TTL {given['ttl_seconds']} s")
    if given["touch_on_lookup"]:
        parts.append("lookups count")
    init = [f"{name}={value}" for name, value in given["init"].items() if name != "name"]
    parts.append(" ".join(["init", given["init"]["name"], *init, f"seed={given['seed']}"]))
    return ", ".join(parts)


def _updates(document: dict[str, Any]) -> str:
    if not document["trainable"]:
        return "none: it is frozen, or a file that is served where it lies"
    optimizer = document["optimizer"]
    if optimizer is None:
        return "scatter_add and assign: it has no optimizer"
    options = [f"{name}={value}" for name, value in optimizer.items() if name != "name"]
    return " ".join([f"by {optimizer['name']}", *options])


@click.command()
@target_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def ping(target: CommandTarget, as_json: bool) -> None:
    """Ask a server for its version and state, and time the round trip.

    The exit status is 3 when none answers, or when it is about to stop: then it should get no new
    requests.

    \b
        gatherd ping
        gatherd ping --url grpc://embeddings:8001
    """
    with target.connect() as client:
        found = client.ping()
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(f"{target.url}: {_state(found)}")
    if not found.ready:
        raise Unavailable("the server is about to stop")


def _state(found: ServerInfo) -> str:
    updates = "nothing can be changed" if found.updates == "none" else f"updates {found.updates}"
    ready = "ready" if found.ready else "not ready"
    version = f"gatherd {found.version} (commit {found.commit})"
    return f"{ready}, {updates}, {version}, round trip {found.seconds * 1e3:.3g} ms"
