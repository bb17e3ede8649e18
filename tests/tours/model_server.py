"""The first hour of somebody who deploys a ranking model.

The trained model is a file with 26 embedding tables. The model server, in Python, blocking or
async, looks up a request's rows in one round trip, and a newly trained file takes the old one's
place while it does.
"""

import asyncio
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gatherd import AsyncClient, Client, IdOutOfRange, InvalidArgument, TableNotFound
from tours.terminal import Server, Terminal, terminal

TABLES = [f"cat_{number:02}" for number in range(26)]
rng = np.random.default_rng(0)
model = {name: rng.normal(size=(1000, 16)).astype(np.float32) for name in TABLES}


def serving_the_file(user: Terminal) -> Server:
    """The first try isn't right, and each error says what to type."""
    save_file(model, "model.safetensors")
    user.mistypes("gatherd serve", "nothing to serve: give NAME=FILE, or --data-dir")
    user.mistypes("gatherd serve model.safetensors", "isn't NAME=FILE")
    # As it proposes. But which of its tensors? Each is listed, with its shape.
    user.mistypes(user.proposed(), "name one as model.safetensors#TENSOR",
                  *(f"{name}  F32 (1000, 16)" for name in TABLES))  # fmt: skip
    user.mistypes("gatherd serve model=model.safetensors#cat_99", "cat_00")
    user.mistypes("gatherd serve cat=modle.safetensors#cat_00", "did you mean 'model.safetensors'?",
                  status=6)  # fmt: skip

    specs = " ".join(f"{name}='model.safetensors#{name}'" for name in TABLES)
    user.types(f"gatherd serve {specs} --check")
    server = user.serves(f"gatherd serve {specs}")
    user.types("gatherd ping", "ready")
    user.types("gatherd tables", *TABLES)
    user.types("gatherd lookup cat_00 0 999")
    return server


def looking_up(user: Terminal, client: Client) -> None:
    """A request's rows of all tables, in one round trip."""
    ids = {name: rng.integers(0, 1000, size=(32, 2)) for name in TABLES}
    rows = client.lookup_many(ids)
    assert list(rows) == TABLES
    assert all((rows[name] == model[name][ids[name]]).all() for name in TABLES)

    # Which version answered, and what was missing?
    rows_and_infos = client.lookup_many(ids, return_info=True)
    vectors, info = rows_and_infos["cat_00"]
    assert vectors.shape == (32, 2, 16)
    assert info.version == 1

    # Half precision: half the bytes on the wire.
    halved = client.lookup("cat_00", [1, 2], dtype="float16")
    assert halved.dtype == np.float16
    assert (halved == model["cat_00"][[1, 2]].astype(np.float16)).all()
    units = client.lookup("cat_00", [1, 2], normalize=True, dims=8)
    assert np.allclose(np.linalg.norm(units, axis=1), 1)

    # A feature that wasn't seen in training is an error, unless the request says otherwise.
    with user.mistake(IdOutOfRange, "ids[1]=1000 is out of range", "valid ids are 0 to 999"):
        client.lookup("cat_00", [3, 1000])
    zeros, status = client.lookup("cat_00", [3, 1000], missing="zero", return_status=True)
    assert status.tolist() == [0, 1]
    assert not zeros[1].any()

    with user.mistake(TableNotFound, "did you mean", "'cat_07'"):
        client.lookup("cat_7", [0])
    with user.mistake(InvalidArgument, "did you mean 'float16'?"):
        client.lookup("cat_00", [0], dtype="flaot16")  # type: ignore[call-overload]
    with user.mistake(InvalidArgument, "ids"):
        client.lookup("cat_00", [0.0, 1.0])
    with user.mistake(InvalidArgument, "dims", "16"):
        client.lookup("cat_00", [0], dims=17)


async def looking_up_async(server: Server) -> None:
    """The same from an async web server: 20 requests at once, on one client."""
    async with AsyncClient(server.http) as client:
        ids = {name: np.arange(4) for name in TABLES}
        replies = await asyncio.gather(*(client.lookup_many(ids) for _ in range(20)))
        assert all((reply["cat_25"] == model["cat_25"][:4]).all() for reply in replies)
    async with AsyncClient(server.grpc) as client:
        vectors, info = await client.lookup("cat_03", [7], return_info=True)
        assert (vectors == model["cat_03"][[7]]).all()
        assert info.version == 1


def wrong_address(user: Terminal, server: Server) -> None:
    """Ports and schemes that are mixed up, and a server that isn't there."""
    port = server.grpc.rpartition(":")[2]
    user.mistypes(f"gatherd ping --url http://127.0.0.1:{port}", server.grpc, status=5)
    user.types_what_it_says("ready")
    user.mistypes("gatherd ping --url http://127.0.0.1:9", "gatherd serve", "another --url",
                  status=3)  # fmt: skip
    user.mistypes(f"gatherd lookup {server.http} cat_07 0", "is a URL")
    user.types_what_it_says("0: ")
    user.mistypes("gatherd lookup cat_7 0", "did you mean", "'cat_07'", status=4)
    user.mistypes("gatherd lookup cat_07 '[0, 1]'")
    user.types_what_it_says("0: ", "1: ")


def replacing_the_file(user: Terminal, server: Server, client: Client) -> None:
    """A new model, trained over night: moved to the old one's path, then SIGHUP."""
    newer = {name: rows + 1 for name, rows in model.items()}
    save_file({**newer, "cat_00": newer["cat_00"][:, :8].copy()}, "new.safetensors")
    shutil.copy("model.safetensors", "kept.safetensors")

    # The first one has another dim: nothing is replaced, and the log says so.
    Path("new.safetensors").replace("model.safetensors")
    server.hangs_up()
    server.waits_for("no file is replaced")
    assert (client.lookup("cat_00", [5]) == model["cat_00"][[5]]).all()

    save_file(newer, "new.safetensors")
    Path("new.safetensors").replace("model.safetensors")
    server.hangs_up()
    server.waits_for("version 2")
    vectors, info = client.lookup("cat_00", [5], return_info=True)
    assert info.version == 2
    assert (vectors == newer["cat_00"][[5]]).all()


def measuring(user: Terminal) -> None:
    """How fast is it from here?"""
    user.types("gatherd bench --tables 26 --batch 32 --seconds 0.3", "P99")
    user.mistypes("gatherd bench --tabels 26", "--tables")
    user.types("gatherd top --once", "requests")


with terminal() as user:
    server = serving_the_file(user)
    with Client(server.http) as client:
        looking_up(user, client)
        asyncio.run(looking_up_async(server))
        wrong_address(user, server)
        replacing_the_file(user, server, client)
    measuring(user)
    assert server.stops() == 0
