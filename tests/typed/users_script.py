"""A user's script, with six mistakes that a type checker has to find: `make check-types` runs two.

Each mistake has a comment at its line. Everything else is right, and no checker may say otherwise.
"""

import asyncio

import numpy as np
from numpy.typing import NDArray

import gatherd
from gatherd import AsyncClient, Call, Client, GatherdError, Hook, Ids, Keys, TableHandle, Vectors


class Slow(Hook):
    def ended(self, call: Call) -> None:
        if call.seconds > 0.1:
            print(call.method, call.tables, call.status, call.retries)


def sentence(words: TableHandle, text: str) -> NDArray[np.float32]:
    known = [word for word in text.lower().split() if word in words]
    if not known:
        return np.zeros(words.vector_size, np.float32)
    found: Vectors = words.lookup_bags(keys=[known], mode="mean")
    return np.asarray(found[0], np.float32)


def ask(client: Client, ids: Ids, keys: Keys) -> float:
    vectors, status = client.lookup("words", ids, missing="zero", return_status=True)
    if status.any():
        print("missing:", np.flatnonzero(status).tolist())
    by_key = client.lookup("words", keys=keys, dtype=np.float16, timeout=0.5)
    many = client.lookup_many({"user": [1, 2], "item": np.arange(3)}, version={"item": 4})
    client.lookup("words", ids, missing="zeros")  # mistake: a misspelled policy
    client.lookup_bags("words", [[1, 2], [3]], mode="avg")  # mistake: an unknown mode
    pair = client.lookup("words", ids, return_status=True)
    pair.mean()  # mistake: a tuple has no mean
    return float(vectors.sum()) + float(by_key.sum()) + float(many["user"].sum())


def train(client: Client) -> gatherd.UpdateResult:
    items = client["items"]
    ids = np.array([3, 4])
    grads = np.zeros((2, items.dim), np.float32)
    client.scatter_add("items", ids)  # mistake: there are no deltas
    items.aply_gradients(ids, grads)  # mistake: a misspelled member
    done = items.apply_gradients(ids, grads, lr=0.1)
    print(done.lsn, [table.name for table in client.tables()], client.table("items").optimizer)
    return done


async def serve(client: AsyncClient) -> float:
    rows = client.lookup("words", [1, 2])
    rows.sum()  # mistake: it wasn't awaited
    handle = client["words"]
    vectors = await handle.lookup(keys=["king"], normalize=True, dims=64)
    similar = [word for word, score in await handle.most_similar("king", topn=3) if score > 0.5]
    print(similar, (await handle.ids_of(["king"])).tolist(), (await handle.info()).vector_size)
    return float(vectors.sum()) if await handle.contains("king") else 0.0


def main() -> None:
    with Client("http://127.0.0.1:8000", hooks=[Slow()]) as client:
        try:
            print(sentence(client["words"], "The king"), ask(client, [[4], [20]], ["king"]))
        except gatherd.KeyNotFound as error:
            print(error.message, error.metadata["table"])
        except GatherdError as error:
            print(error.reason)
        print(train(client).versions)
    asyncio.run(serve(AsyncClient("grpc://127.0.0.1:8001")))


if __name__ == "__main__":
    main()
