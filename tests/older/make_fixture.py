"""Makes a data dir as a release leaves it when it is killed, for later ones to open.

    PYTHONPATH=TREE/tests TREE/.venv/bin/python tests/older/make_fixture.py FILE.tar.gz

run with the environment and the tests of the release in TREE. Nothing but the command line, the
SDK, the wire and the files' formats is used, so that this runs on any release.

In FILE are data/, snaps/kept, the token file, and what later releases must find:

    facts.json    tokens, LSNs, the pushes' request ids
    arrays.npz    "T vN": the rows that lookups answered; "data/…" and "snap/…": every .npy file as
                  the release itself brings it up to the log; "ids" and "values" of the pushes
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from gatherd import Client
from gatherd_proto.v1.embedding_pb2 import UpdateResponse
from support.raw_updates import SERVICE, request, sequence, update
from support.server import RunningServer, clean_environment, run_cli

SESSION = b"kept for later.."
WORDS = {"zoë": 0, "king": 1, "queen": 2, "\n": 3, "the longest of all the words": 4}
CHECKPOINTS = ("--checkpoint-seconds", "86400", "--segment-bytes", "1048576")
Arrays = dict[str, NDArray[Any]]


def import_piped(root: Path, name: str, source: str, keys: str, *options: str) -> None:
    """Import from standard input: a path would stand in the manifest."""
    command = [sys.executable, "-m", "gatherd_server", "import", name, "-"]
    command += ["--keys", str(root / keys), "--data-dir", str(root / "data"), *options]
    with open(root / source, "rb") as file:
        subprocess.run(command, stdin=file, env=clean_environment(), check=True)


def make_tables(root: Path) -> None:
    """Keys of strings and of integers, four dtypes, five optimizers or none."""
    rng = np.random.default_rng(11)
    np.save(root / "rows.npy", rng.normal(size=(5, 4)).astype(np.float32))
    (root / "words.json").write_text(json.dumps(list(WORDS)))
    np.save(root / "numbers.npy", rng.normal(size=(40, 3)).astype(np.float32))
    np.save(root / "ids.npy", np.arange(40, dtype=np.int64) * 7 - 50)
    import_piped(root, "words", "rows.npy", "words.json", "--optimizer", "adam")
    options = ("--dtype", "float16", "--optimizer", "rowwise-adagrad")
    import_piped(root, "numbers", "numbers.npy", "ids.npy", *options)
    data = ("--data-dir", root / "data")
    made = {
        "momentum": ("float16", "sgd", "momentum=0.5"),
        "halves": ("bfloat16", "ftrl", "l1=0.001"),
        "sums": ("float32", "adagrad", "padding_id=2"),
    }
    for name, (dtype, optimizer, option) in made.items():
        run_cli(
            *("create", name, "--rows", "30", "--dim", "5", "--seed", "3", "--dtype", dtype),
            *("--optimizer", optimizer, "--optimizer-option", option, *data),
        )
    run_cli(
        *(
            "create",
            "frozen",
            "--rows",
            "9",
            "--dim",
            "2",
            "--seed",
            "4",
            "--dtype",
            "float64",
            *data,
        )
    )


def push_some(client: Client, rng: np.random.Generator) -> None:
    """A few of every kind, with ids of the SDK's own session."""
    for table in ("momentum", "halves", "sums"):
        ids = rng.integers(0, 30, 6)
        values = rng.normal(size=(6, 5)).astype(np.float32)
        client.apply_gradients(table, ids, values)
        client.scatter_add(table, ids[:2], values[:2])
        client.assign(table, ids[3:4], values[3:4])
    client.apply_gradients("words", keys=["king", "zoë"], grads=rng.normal(size=(2, 4)))
    client.apply_gradients("numbers", keys=[-50, 6, 6], grads=rng.normal(size=(3, 3)))


def arrays_of(folder: Path, name: str) -> Arrays:
    """Every array file below `folder`, by its path."""
    return {
        f"{name}/{path.relative_to(folder)}": np.load(path)
        for path in sorted(folder.rglob("*.npy"))
    }


def make(root: Path) -> None:
    """All of it, in `root`."""
    make_tables(root)
    tokens = root / "tokens"
    token = run_cli(
        *("token", "trainer", "--scope", "read", "--scope", "update", "--scope", "admin"),
        *("--table", "*", "--tokens", tokens),
    ).stdout.strip()
    serve: tuple[str | Path, ...] = ("--data-dir", root / "data", "--tokens", tokens, *CHECKPOINTS)
    serve += ("--snapshot-dir", root / "snaps")
    rng = np.random.default_rng(12)
    ids, values = np.array([4, 4, 9]), rng.normal(size=(3, 5)).astype(np.float32)
    facts: dict[str, Any] = {"token": token, "session": SESSION.hex(), "lsns": {}}

    def push(url: str, **request_id: Any) -> int:
        message = request(update("sums", ids, values), **request_id)
        response = httpx.post(
            f"{url}/{SERVICE}/ScatterAdd",
            content=message.SerializeToString(),
            headers={"Content-Type": "application/proto", "Authorization": f"Bearer {token}"},
        )
        response.raise_for_status()
        return UpdateResponse.FromString(response.content).lsn

    # Stopped in good order: what it did is in the checkpoint.
    with RunningServer(*serve) as server, Client(server.http, token=token) as client:
        push_some(client, rng)
        client.publish("sums")
        client.publish("words")
        push_some(client, rng)
        facts["lsns"]["in the checkpoint"] = {
            "key": push(server.http, idempotency_key="early"),
            "sequence": push(server.http, sequence=sequence(SESSION, 1)),
        }
        facts["snapshot_lsn"] = client.snapshot("kept").lsn
    # Killed: what it did is in the log.
    server = RunningServer(*serve)
    arrays: Arrays = {"ids": ids, "values": values}
    with server, Client(server.http, token=token) as client:
        push_some(client, rng)
        client.publish("sums")
        client.rollback("words")
        client.set_optimizer("numbers", "adam", lr=0.125)
        client.create_table("late", 12, 3, init="normal", seed=5, optimizer="sgd")
        client.delete_table("momentum")
        client.scatter_add("late", [1, 1, 5], np.ones((3, 3)))
        client.apply_gradients("numbers", keys=[6], grads=rng.normal(size=(1, 3)))
        client.apply_gradients("sums", [0, 2, 29], rng.normal(size=(3, 5)))
        facts["lsns"]["in the log"] = {
            "key": push(server.http, idempotency_key="late"),
            "sequence": push(server.http, sequence=sequence(SESSION, 3)),
        }
        facts["tables"] = {
            info.name: {"versions": info.versions, "live": info.version, "rows": info.rows}
            for info in client.tables()
        }
        for info in client.tables():
            for version in info.versions:
                arrays[f"{info.name} v{version}"] = client.lookup(
                    info.name, np.arange(info.rows), version=version
                )
        server.kill()
    (root / "data/server.sock").unlink()
    shutil.copytree(root / "data", root / "recovered")
    with RunningServer("--data-dir", root / "recovered", "--tokens", tokens):
        pass
    run_cli("restore", root / "snaps/kept", "--data-dir", root / "restored")
    arrays |= arrays_of(root / "recovered/tables", "data")
    arrays |= arrays_of(root / "restored/tables", "snap")
    save: Any = np.savez_compressed
    save(root / "arrays.npz", **arrays)
    (root / "facts.json").write_text(json.dumps(facts, indent=1))


def main() -> None:
    """Make the fixture, as small as it gets."""
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root)
        kept = ("data", "snaps", "tokens", "facts.json", "arrays.npz")
        subprocess.run(
            [
                *("tar", "--create", "--sparse", "--format=gnu", "--owner=0", "--group=0"),
                *("--mtime=@0", "--sort=name", "--use-compress-program=gzip -9n"),
                *("--file", target, "--directory", root, *kept),
            ],
            check=True,
        )


if __name__ == "__main__":
    main()
