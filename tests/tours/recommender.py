"""The first hour of somebody who trains a recommender.

An empty table of items that learns on the server: gradients are pushed, a push is retried, a
version is kept and gone back to, a snapshot taken, and the trained rows are exported.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from gatherd import (
    Client,
    FailedPrecondition,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    NonfiniteValues,
    NoOptimizer,
    RequestIdReused,
    VersionMismatch,
    VersionNotFound,
)
from tours.terminal import Terminal, terminal

LR = 0.1
rng = np.random.default_rng(0)


def creating(user: Terminal) -> None:
    """An option that the optimizer lacks is named, with those that it has."""
    user.mistypes("gatherd create items --rows 1000 --dim 8 --optimizer adagard --data-dir ./data",
                  "adagrad")  # fmt: skip
    user.mistypes(
        "gatherd create items --rows 1000 --dim 8 --optimizer adagrad "
        "--optimizer-option momentum=0.9 --data-dir ./data",
        "momentum",
        "adagrad",
    )
    user.mistypes("gatherd create items --rows 1000 --dim 8 --lr 0.1 --data-dir ./data",
                  "--optimizer")  # fmt: skip
    create = (
        "gatherd create items --rows 1000 --dim 8 --init normal --seed 1 "
        f"--optimizer adagrad --lr {LR} --data-dir ./data"
    )
    user.types(create, "items: 1000 rows of 8 float32")
    user.mistypes(create, "'items'", "gatherd delete items --data-dir ./data", status=5)
    user.types_what_it_says(answers="y")
    user.types(create, "items: 1000 rows")

    # Users are known by 64-bit numbers.
    users = np.array([9_007_199_254_740_993, 42, 7], np.int64)
    np.save("users.npy", users)
    np.save("rows.npy", np.zeros((3, 8), np.float32))
    user.types(
        "gatherd import users rows.npy --keys users.npy --optimizer sgd --lr 1 --data-dir ./data"
    )
    user.types("gatherd import fixed rows.npy --data-dir ./data")


def training(user: Terminal, client: Client) -> None:
    """Two pushes of adagrad, beside the formula in NumPy; duplicates are one step of their sum."""
    rows = client.lookup("items", np.arange(1000))
    optimizer = client.table("items").optimizer
    assert optimizer is not None
    assert optimizer["lr"] == LR
    squares = np.full_like(rows, optimizer["initial_accumulator"])
    for _ in range(2):
        ids = np.array([3, 5, 3])
        grads = rng.normal(size=(3, 8)).astype(np.float32)
        result = client.apply_gradients("items", ids, grads)
        for row in (3, 5):
            gradient = grads[ids == row].sum(axis=0)
            squares[row] += gradient**2
            rows[row] -= LR * gradient / np.sqrt(squares[row])
    assert np.allclose(client.lookup("items", np.arange(1000)), rows, atol=1e-5)
    assert result.versions == {"items": 1}

    client.apply_gradients("users", keys=[42], grads=np.ones((1, 8)))
    assert (client.lookup("users", keys=[42, 7]) == [[-1] * 8, [0] * 8]).all()
    user.types("gatherd lookup users 9007199254740993 --by-key", "9007199254740993: 0 0")


def mistakes_in_pushes(user: Terminal, client: Client) -> None:
    """Each is refused as a whole."""
    before = client.lookup("items", np.arange(1000))
    with user.mistake(InvalidArgument, "(2, 8)"):
        client.apply_gradients("items", [1, 2], np.ones((2, 9)))
    with user.mistake(IdOutOfRange, "ids[1]=1000", "valid ids are 0 to 999"):
        client.apply_gradients("items", [1, 1000], np.ones((2, 8)))
    with user.mistake(NonfiniteValues, "[0][3]"):
        grads = np.ones((1, 8))
        grads[0, 3] = np.nan
        client.apply_gradients("items", [1], grads)
    with user.mistake(KeyNotFound, "'users'", "43"):
        client.apply_gradients("users", keys=[43], grads=np.ones((1, 8)))
    with user.mistake(NoOptimizer, "gatherd set-optimizer fixed adagrad --lr 0.05"):
        client.apply_gradients("fixed", [0], np.ones((1, 8)))
    user.types_what_it_says("fixed: version 2 is live")
    client.apply_gradients("fixed", [0], np.ones((1, 8)))
    with user.mistake(InvalidArgument, "lr"):
        client.apply_gradients("items", [1], np.ones((1, 8)), lr=-1)
    with user.mistake(VersionMismatch, "version 1"):
        client.apply_gradients("items", [1], np.ones((1, 8)), if_version=9)
    assert (client.lookup("items", np.arange(1000)) == before).all()


def exactly_once(user: Terminal, client: Client) -> None:
    """A job that is restarted sends its push again, under the same name: it counts once."""
    first = client.scatter_add("items", [9, 9], np.ones((2, 8)), idempotency_key="epoch-1")
    rows = client.lookup("items", [9])
    again = client.scatter_add("items", [9, 9], np.ones((2, 8)), idempotency_key="epoch-1")
    assert again.lsn == first.lsn
    assert (client.lookup("items", [9]) == rows).all()
    with user.mistake(RequestIdReused, "epoch-1"):
        client.scatter_add("items", [9, 9], np.zeros((2, 8)), idempotency_key="epoch-1")
    user.types("gatherd scatter-add items 9 --values '[[0, 0, 0, 0, 0, 0, 0, 0]]' "
               "--idempotency-key epoch-2", "version 1")  # fmt: skip

    # Many trainers at once: every one of 40 pushes counts.
    start = client.lookup("items", [11])
    threads = [
        threading.Thread(
            target=lambda: [client.scatter_add("items", [11], np.ones((1, 8))) for _ in range(10)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.allclose(client.lookup("items", [11]), start + 40)


def versions(user: Terminal, client: Client) -> None:
    """Keep what was learned, spoil it, go back."""
    kept = client.lookup("items", np.arange(10))
    assert client.publish("items").version == 2
    client.assign("items", np.arange(10), np.zeros((10, 8)))
    user.types("gatherd versions items", "1", "2  (live)")
    with user.mistake(VersionNotFound, "version", "1, 2"):
        client.lookup("items", [0], version=7)
    user.mistypes("gatherd rollback items --to 7", "gatherd versions items", status=4)
    user.types_what_it_says("2  (live)")
    user.types("gatherd rollback items --if-version 2", "items: version 1 is live")
    assert (client.lookup("items", np.arange(10)) == kept).all()
    user.mistypes("gatherd versions delete items 1 --yes", "live", status=5)
    user.types("gatherd set-optimizer items rowwise-adagrad --lr 0.05", "version 3 is live")
    with user.mistake(InvalidArgument, "rowwise-adagrad"):
        client.set_optimizer("items", "rowwise_adagrad")  # type: ignore[arg-type]
    user.types("gatherd versions delete items 2 --yes")


def exporting(user: Terminal, client: Client) -> None:
    """Trained rows, for another tool."""
    rows = client.lookup("items", np.arange(1000))
    user.types("gatherd export items items.npy", "1000 rows of 8 float32")
    assert (np.load("items.npy") == rows).all()
    user.mistypes("gatherd export items items.npy", "--overwrite", status=5)
    user.mistypes("gatherd export items items.csv", ".npy", ".safetensors", "--format")
    user.types("gatherd export users users.safetensors")
    assert np.load("users.safetensors.keys.npy").tolist() == [9_007_199_254_740_993, 42, 7]


def keeping(user: Terminal, rows: NDArray[np.float32]) -> None:
    """What was acknowledged is there after a stop, and a snapshot keeps it."""
    server = user.serves("gatherd serve --data-dir ./data --snapshot-dir ./snapshots")
    with Client(server.http) as client:
        assert (client.lookup("items", np.arange(1000)) == rows).all()
        taken = client.snapshot("monday")
        client.assign("items", np.arange(1000), np.zeros((1000, 8)))
    user.types("gatherd snapshots", "monday", str(taken.lsn))
    user.types("gatherd verify --data-dir ./snapshots/monday", "ok")
    # A notebook on the same machine needs no server.
    with Client("local:./snapshots/monday") as local:
        assert (local.lookup("items", np.arange(1000)) == rows).all()
    user.types("gatherd restore ./snapshots/monday --table items --data-dir ./data", "items")
    with Client(server.http) as client:
        assert (client.lookup("items", np.arange(1000)) == rows).all()
    assert server.stops() == 0


with terminal() as user:
    creating(user)
    server = user.serves("gatherd serve --data-dir ./data")
    with Client(server.http) as client:
        training(user, client)
        mistakes_in_pushes(user, client)
        exactly_once(user, client)
        versions(user, client)
        exporting(user, client)
        with user.mistake(FailedPrecondition, "start it with --snapshot-dir"):
            client.snapshot("monday")
        rows = client.lookup("items", np.arange(1000))
    assert server.stops() == 0
    keeping(user, rows)
