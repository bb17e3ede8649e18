"""The tour of `make demo`: serve a real pre-trained table, look it up over every wire, train it.

Fetches the table once (table.py beside this file), serves it where it lies and a copy
with keys and an optimizer, and prints each request as a user would type it, with its answer. Two
trainers (trainer.py) then train the copy at the same time, and a rollback gives the first vectors
back. A word that wasn't there comes by its first push, into an open table. Then it leaves the
server running until Ctrl-C; with DEMO_ONCE=1 it stops it and exits. Addresses are those of
`gatherd serve`, set by GATHERD_HTTP and GATHERD_GRPC.
"""

import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gatherd import Client
from table import TENSOR, fetch, write_keys
from trainer import COSINE, WORD_START, Pairs, cosines, losses

HERE = Path(__file__).parent
CACHE = Path(".demo")
DATA_DIR = CACHE / "data"
WORDS = ("king", "Paris", "Monday", "water", "happy", "seven")
NEIGHBOURS = 5
SENTENCE = "the king sat on the throne"
OTHER_SENTENCES = ("a queen wore her crown", "water flows down the river")
OPTIMIZER = ("--optimizer", "adagrad", "--lr", "0.05")
NEW_WORD = "rizz"
OPEN_TABLE = "slang"
TAUGHT = (("quiet", "loud"), ("quiet", "silent"), ("easy", "difficult"), ("easy", "simple"))


def import_words(weights: Path, vocabulary: dict[str, int]) -> None:
    """Import the same rows as a table with keys, the tokens, that can be trained further."""
    keys = CACHE / "tokens.txt"
    write_keys(vocabulary, keys)
    source = ("words", f"{weights}#{TENSOR}", "--keys", str(keys))
    gatherd("import", *source, *OPTIMIZER, "--data-dir", str(DATA_DIR))


def gatherd(*arguments: str) -> None:
    """Print a command and run it to its end."""
    print(f"$ gatherd {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "gatherd_server", *arguments], check=True)


def start(weights: Path) -> tuple[subprocess.Popen[str], str, str]:
    """Start `gatherd serve`; returns the process and its HTTP and gRPC URLs."""
    arguments = [f"tokens={weights}#{TENSOR}", "--data-dir", str(DATA_DIR)]
    arguments += ["--snapshot-dir", str(CACHE / "snapshots")]  # for /docs, which tries everything
    print(f"$ gatherd serve {shlex.join(arguments)}", flush=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "gatherd_server", "serve", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={"GATHERD_LOG_LEVEL": "warning", **os.environ},
    )
    assert server.stdout is not None
    urls: dict[str, str] = {}
    for line in server.stdout:
        print(f"  {line}", end="", flush=True)
        words = line.split()
        if words[0] in ("http", "grpc"):
            urls[words[0]] = words[1]
        if len(urls) == 2:
            return server, urls["http"], urls["grpc"]
    server.wait()
    sys.exit(
        "The server didn't start. If a port is taken, choose others:\n"
        "    GATHERD_HTTP=127.0.0.1:9000 GATHERD_GRPC=127.0.0.1:9001 make demo"
    )


def post(url: str, content_type: str, body: str) -> str:
    """Print the curl command, and post the same: by curl itself if it is installed."""
    command = ["curl", "-s", url, "-H", f"Content-Type: {content_type}", "-d", body]
    print(f"\n$ {shlex.join(command)}")
    if shutil.which("curl"):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    request = urllib.request.Request(url, body.encode(), {"Content-Type": content_type})
    with urllib.request.urlopen(request) as reply:
        answer: str = reply.read().decode()
    return answer


def show(answer: str) -> None:
    """Print the beginning of a long answer."""
    print(f"  {answer[:100]} … {answer[-70:]}" if len(answer) > 180 else f"  {answer}")


def tour(http: str, grpc: str, vocabulary: dict[str, int]) -> None:
    """Ask for the same tokens over every wire, compare, and show nearest neighbours."""
    ids = [vocabulary[WORD_START + word] for word in WORDS]
    print("\nTokens: " + ", ".join(f"{w} = {i}" for w, i in zip(WORDS, ids, strict=True)))
    answers: dict[str, NDArray[np.float32]] = {}

    print("\n--- REST, JSON")
    url = f"{http}/v1/tables/tokens:lookup"
    answer = post(url, "application/json", json.dumps({"ids": ids}))
    show(answer)
    answers["REST"] = np.array(json.loads(answer)["vectors"], np.float32)

    print("\n--- Connect, JSON (tensors are base64 of little-endian bytes)")
    data = base64.b64encode(np.array(ids, "<i8").tobytes()).decode()
    tensor = {"dtype": "DTYPE_INT64", "shape": [len(ids)], "data": data}
    body = json.dumps({"table": "tokens", "ids": tensor})
    answer = post(f"{http}/gatherd.v1.EmbeddingService/Lookup", "application/json", body)
    show(answer)
    vectors = json.loads(answer)["vectors"]
    answers["Connect"] = np.frombuffer(base64.b64decode(vectors["data"]), "<f4").reshape(-1, 256)

    for wire, where in (("Python over Connect", http), ("Python over gRPC", grpc)):
        print(f"\n--- {wire}")
        print(">>> from gatherd import Client")
        print(f'>>> client = Client("{where}")')
        print(f'>>> client.lookup("tokens", {ids}).round(3)')
        with Client(where) as client:
            answers[wire] = client.lookup("tokens", ids)
        print(answers[wire].round(3))

    first, *others = answers.values()
    assert all(np.array_equal(first, other) for other in others), "the wires disagree"
    print(f"\nAll {len(answers)} answers are the same {first.shape} float32 array, bit for bit.")
    words_by_key(http, first)
    neighbours(http, vocabulary, ids)
    training(http, grpc)
    new_word(http)


def words_by_key(http: str, by_id: NDArray[np.float32]) -> None:
    """Look the same rows up by their keys, and let the server pool a sentence."""
    keys = [WORD_START + word for word in WORDS]
    print("\n--- By key: the table `words` has the tokens as its keys")
    print(f'>>> client.lookup("words", keys={keys})')
    sentence = [WORD_START + word for word in SENTENCE.split()]
    with Client(http) as client:
        assert np.array_equal(client.lookup("words", keys=keys), by_id), "keys and ids disagree"
        print("the same array, bit for bit")
        print(f"\n--- A sentence as one vector, pooled on the server: {SENTENCE!r}")
        print(f'>>> client.lookup_bags("words", keys=[{sentence}], mode="mean").round(3)')
        (pooled,) = client.lookup_bags("words", keys=[sentence], mode="mean")
        print(
            pooled.round(3)[:8], f"… {pooled.shape}, {pooled.nbytes} bytes for the whole sentence"
        )
        cosine = {}
        for other in OTHER_SENTENCES:
            bag = [WORD_START + word for word in other.split()]
            (vector,) = client.lookup_bags("words", keys=[bag], mode="mean")
            cosine[other] = pooled @ vector / np.linalg.norm(pooled) / np.linalg.norm(vector)
    for other, value in sorted(cosine.items(), key=lambda item: -item[1]):
        print(f"  cosine {value:.2f} with {other!r}")


def neighbours(http: str, vocabulary: dict[str, int], ids: list[int]) -> None:
    """Print the nearest words by cosine, from one lookup of the whole vocabulary."""
    tokens = {row: token for token, row in vocabulary.items()}
    is_word = {row: token[1:].isalpha() and len(token) > 3 for row, token in tokens.items()}
    words = np.array([row for row, wanted in is_word.items() if wanted])
    with Client(http) as client:
        rows = client.lookup("tokens", words)
        asked = client.lookup("tokens", ids)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ (asked / np.linalg.norm(asked, axis=1, keepdims=True)).T
    print(f"\nNearest by cosine, among the {len(words)} tokens of three letters and more:")
    for column, word in enumerate(WORDS):
        order = np.argsort(-cosines[:, column])
        near = [(tokens[int(words[row])].lstrip(WORD_START), cosines[row, column]) for row in order]
        others = [(token, cosine) for token, cosine in near if token.lower() != word.lower()]
        listed = ", ".join(f"{token} {cosine:.2f}" for token, cosine in others[:NEIGHBOURS])
        print(f"  {word:8} {listed}")


def is_as_imported(http: str) -> bool:
    """Whether `words` is still as imported: an earlier tour may have been interrupted."""
    with Client(http) as client:
        info = client.table("words")
        if not info.trainable or info.versions != (1,):
            return False
        ids = np.arange(info.rows)
        return np.array_equal(client.lookup("words", ids), client.lookup("tokens", ids))


def training(http: str, grpc: str) -> None:
    """Train a copy of `words` by two processes, print the changes, and go back."""
    pairs = Pairs.read()
    print("\n--- Trained further, by key, by two processes at once")
    print(
        f"The task: of {len(pairs)} pairs of words, to tell synonyms from opposites by whether "
        f"their cosine is above {COSINE}.\n"
        "What each trainer does with a batch of pairs:\n"
        '>>> vectors = client.lookup("words", keys=pairs)  # (16, 2) keys, so (16, 2, 256)\n'
        ">>> grads = gradients(vectors, signs)             # NumPy\n"
        '>>> client.apply_gradients("words", keys=pairs, grads=grads)  # one step of Adagrad\n'
    )
    gatherd("publish", "words", "--data-dir", str(DATA_DIR))
    with Client(http) as client:
        before = client.lookup("words", keys=pairs.keys)
        lsn = client.table("words").lsn
        pushes = run_trainers(http, grpc)
        after = client.lookup("words", keys=pairs.keys)
        lsn_after = client.table("words").lsn
        assert lsn_after - lsn == pushes, "a push was lost, or counted twice"
        print(f"The log went from LSN {lsn} to {lsn_after}: all {pushes} pushes, each once.")
        for name, vectors in (("before", before), ("after", after)):
            right = np.mean((cosines(vectors) > COSINE) == (pairs.signs > 0))
            loss = losses(vectors, pairs.signs).mean()
            print(f"  {name:6} loss {loss:.3f}, {right:4.0%} of the pairs told right")
        assert losses(after, pairs.signs).mean() < losses(before, pairs.signs).mean() / 2
        for first, second in TAUGHT:
            keys = [[WORD_START + first, WORD_START + second]]
            was, now = (
                cosines(client.lookup("words", keys=keys, version=version)).item()
                for version in (1, 2)
            )
            print(f"  {first} and {second}: cosine {was:.2f} in version 1, {now:.2f} in version 2")
        gatherd("rollback", "words", "--data-dir", str(DATA_DIR))
        assert np.array_equal(client.lookup("words", keys=pairs.keys), before)
        print("The same lookup gives the vectors as they were before, bit for bit.")


def new_word(http: str) -> None:
    """Look up a word that isn't there, and create it by its first push."""
    print(f"\n--- A word that wasn't there: {NEW_WORD!r}, in an open table")
    with Client(http) as client:
        if OPEN_TABLE in {one.name for one in client.tables()}:  # of an earlier tour
            client.delete_table(OPEN_TABLE)
        print(
            f'>>> client.create_table("{OPEN_TABLE}", dim=8, keys="string", init="normal", seed=7)'
        )
        client.create_table(OPEN_TABLE, dim=8, keys="string", init="normal", seed=7)
        table = client[OPEN_TABLE]
        print(f'>>> client.lookup("{OPEN_TABLE}", keys=["{NEW_WORD}"], missing="init").round(3)')
        first, status = table.lookup(keys=[NEW_WORD], missing="init", return_status=True)
        print(f"{first.round(3)}  the vector that its row would begin with; no row was made")
        deltas = np.full((1, 8), 0.5, np.float32)
        print(f'>>> client.scatter_add("{OPEN_TABLE}", keys=["{NEW_WORD}"], deltas=…, create=True)')
        result = table.scatter_add(keys=[NEW_WORD], deltas=deltas, create=True)
        now = table.lookup(keys=[NEW_WORD])
        print(
            f"created {result.created[OPEN_TABLE]} row, durable at LSN {result.lsn}: {now.round(3)}"
        )
        assert status.all()
        assert np.array_equal(now, first + deltas)
        table.delete_rows([NEW_WORD])
        assert np.array_equal(table.lookup(keys=[NEW_WORD], missing="init"), first)
        print("Deleted, it has its first vector again, bit for bit.")


def run_trainers(*urls: str) -> int:
    """Run a trainer for each URL, all at the same time; returns how many pushes they made."""
    trainers: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:
        read, write = os.pipe()
        output: IO[str] = stack.enter_context(open(read, encoding="utf-8"))
        for number, url in enumerate(urls, 1):
            arguments = [
                os.path.relpath(HERE / "trainer.py"),
                url,
                "words",
                "--share",
                f"{number}/{len(urls)}",
            ]
            print(f"$ python {shlex.join(arguments)} &", flush=True)
            command = [sys.executable, *arguments, "--wait"]
            trainer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write, text=True)
            trainers.append(stack.enter_context(trainer))
        os.close(write)
        ready, pushes = 0, 0
        for line in output:
            if line.strip() == "ready":
                ready += 1
                # All begin together, so that they push at the same time.
                for trainer in trainers if ready == len(trainers) else ():
                    assert trainer.stdin is not None
                    trainer.stdin.close()
                continue
            print(f"  {line}", end="", flush=True)
            pushes += int(line.split(" pushes, ")[0].split()[-1]) if " pushes, " in line else 0
    if any(trainer.returncode for trainer in trainers):
        sys.exit("A trainer failed; its error is above.")
    return pushes


def main() -> None:
    """Fetch, serve, tour, and wait or stop."""
    weights, vocabulary = fetch(CACHE)
    if not (DATA_DIR / "tables" / "words").exists():
        import_words(weights, vocabulary)
    server, http, grpc = start(weights)
    try:
        if "--serve-only" not in sys.argv:
            if not is_as_imported(http):
                gatherd("delete", "words", "--yes", "--data-dir", str(DATA_DIR))
                import_words(weights, vocabulary)
            tour(http, grpc, vocabulary)
        if os.environ.get("DEMO_ONCE"):
            return
        print(f"\nThe server goes on: {http} (docs: {http}/docs), {grpc}. Ctrl-C stops it.")
        sys.stdout.flush()
        server.wait()
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
