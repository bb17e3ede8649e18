"""Exports: files that others read as what the table holds, and that come back in as it was.

NumPy and safetensors are the judges where they can read a file. word2vec's two forms are read here
as gensim reads them, and tests/peers has gensim itself do it.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gatherd import Client
from support.cli import invoke
from support.server import RunningServer
from support.tables import make_data_dir

rng = np.random.default_rng(11)
WORDS = ["king", "queen", "naïve", "日本", "new_york", "a.b", "3", "1e5", "🦆"]
ROWS = (rng.normal(size=(len(WORDS), 20)) * 10.0 ** rng.integers(-30, 30, (len(WORDS), 1))).astype(
    np.float32
)
OLD_ROWS, OLD_WORDS = ROWS[:5] + 1, WORDS[:5]
NUMBERS = np.array([-(2**63), -1, 0, 7, 2**63 - 1])
HALVES = rng.normal(size=(5, 6)).astype(np.float16)
# More than a chunk of what is asked for at once.
MANY = rng.normal(size=(40_000, 40)).astype(np.float32)


def rounded(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """To bfloat16, by cutting."""
    return (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


BRAINS = rounded(rng.normal(size=(7, 3)).astype(np.float32))
# Open tables: more than a page of users, some of whom went; tags whose rows were used again.
USERS = rng.permutation(10_000)[:6_000] - 5_000
LEFT = USERS[rng.random(USERS.size) < 0.7]
USER_ROWS = {int(key): rng.normal(size=160).astype(np.float32) for key in USERS}
TAGS = {
    word: row.astype(np.float16) for word, row in zip(WORDS, rng.normal(size=(9, 6)), strict=True)
}
GONE_TAGS = ["gone", "past"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables words (2 versions), numbers (int64 keys, float16), brains (bfloat16), many."""
    root = tmp_path_factory.mktemp("export")
    data = root / "data"
    make_data_dir(data)

    def source(name: str, rows: NDArray[Any], keys: Any = None) -> tuple[str | Path, ...]:
        np.save(root / f"{name}.npy", rows)
        if keys is None:
            return (root / f"{name}.npy",)
        path = root / f"{name}.keys"
        if isinstance(keys, np.ndarray):
            path = root / f"{name}.keys.npy"
            np.save(path, keys)
        else:
            path.write_text("".join(f"{key}\n" for key in keys))
        return (root / f"{name}.npy", "--keys", path)

    place = ("--data-dir", data)
    trained = ("--optimizer", "sgd")
    invoke("import", "words", *source("old", OLD_ROWS, OLD_WORDS), *trained, *place)
    invoke("publish", "words", *source("words", ROWS, WORDS), *place)
    invoke("import", "numbers", *source("numbers", HALVES, NUMBERS), *place)
    invoke("import", "brains", *source("brains", BRAINS), "--dtype", "bfloat16", *place)
    invoke("import", "many", *source("many", MANY), *place)
    invoke("import", "widened", *source("narrow", BRAINS[:, :2]), *place)
    invoke("publish", "widened", *source("widened", BRAINS), "--allow-dim-change", *place)
    invoke("create", "wide", "--rows", "2", "--dim", "2", "--dtype", "float64", *place)
    return data


def make_open_tables(client: Client) -> None:
    """Tables users (int64 keys), tags (string keys, float16, 2 versions), nobody (no rows)."""
    client.create_table("users", dim=160, keys="int64", rows_max=8_000)
    client.upsert("users", USERS, np.stack([USER_ROWS[key] for key in USERS.tolist()]))
    client.delete_rows("users", np.setdiff1d(USERS, LEFT))
    client.create_table("tags", dim=6, keys="string", dtype="float16", rows_max=9)
    early = [WORDS[0], GONE_TAGS[0], WORDS[1], GONE_TAGS[1], *WORDS[2:5]]
    client.upsert("tags", early, np.stack([TAGS.get(word, np.ones(6)) for word in early]))
    client.delete_rows("tags", GONE_TAGS)
    client.publish("tags")
    client.upsert("tags", WORDS[5:], np.stack([TAGS[word] for word in WORDS[5:]]))
    client.create_table("nobody", dim=3, keys="uint64", dtype="bfloat16", rows_max=8)


@pytest.fixture(scope="module")
def served(data_dir: Path) -> Iterator[str]:
    with RunningServer("--data-dir", data_dir) as server:
        with Client(server.http) as client:
            make_open_tables(client)
        yield server.http


@pytest.fixture(scope="module", params=["local", "http"])
def url(data_dir: Path, served: str, request: pytest.FixtureRequest) -> str:
    return f"local:{data_dir}" if request.param == "local" else served


def exported(url: str, table: str, out: Path, *options: str) -> str:
    return invoke("export", table, out, "--url", url, *options).stdout


def read_back(folder: Path, *source: str | Path) -> tuple[NDArray[np.float32], list[Any]]:
    """What an import of the file gives: rows and keys."""
    invoke("import", "t", *source, "--data-dir", folder / "again")
    with Client(f"local:{folder / 'again'}") as client:
        info = client.table("t")
        ids = np.arange(info.rows)
        keys = client.keys_of("t", ids).tolist() if info.key_kind else []
        return client.lookup("t", ids), keys


def test_npy_is_what_numpy_reads(url: str, tmp_path: Path) -> None:
    out = tmp_path / "w.npy"
    told = exported(url, "words", out)
    keys = tmp_path / "w.npy.keys"
    assert told == f"{out} and {keys}: {len(WORDS)} rows of 20 float32, version 2 of words\n"
    found = np.load(out)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)
    assert keys.read_text().splitlines() == WORDS
    rows, words = read_back(tmp_path, out, "--keys", keys)
    np.testing.assert_array_equal(rows, ROWS)
    assert words == WORDS


def test_integer_keys_go_beside_it_as_npy(url: str, tmp_path: Path) -> None:
    exported(url, "numbers", tmp_path / "n.npy")
    found = np.load(tmp_path / "n.npy")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, HALVES)
    keys = np.load(tmp_path / "n.npy.keys.npy")
    assert keys.dtype == np.int64
    np.testing.assert_array_equal(keys, NUMBERS)
    rows, numbers = read_back(tmp_path, tmp_path / "n.npy", "--keys", tmp_path / "n.npy.keys.npy")
    np.testing.assert_array_equal(rows, HALVES)
    assert numbers == NUMBERS.tolist()


def test_bfloat16_is_kept_as_its_bits(url: str, tmp_path: Path) -> None:
    exported(url, "brains", tmp_path / "b.npy")
    bits = (BRAINS.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy").view(np.uint16), bits)
    rows, _ = read_back(tmp_path, tmp_path / "b.npy")
    np.testing.assert_array_equal(rows, BRAINS)
    exported(url, "brains", tmp_path / "b.safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="np") as file:
        part = file.get_slice("brains")
        assert (part.get_dtype(), part.get_shape()) == ("BF16", [7, 3])
    assert (tmp_path / "b.safetensors").read_bytes().endswith(bits.tobytes())


def test_safetensors_is_what_its_library_reads(url: str, tmp_path: Path) -> None:
    out = tmp_path / "many.safetensors"
    exported(url, "many", out)
    found = load_file(out)
    assert list(found) == ["many"]
    np.testing.assert_array_equal(found["many"], MANY)
    exported(url, "words", tmp_path / "w.safetensors", "--dtype", "float16")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            load_file(tmp_path / "w.safetensors")["words"], ROWS.astype(np.float16)
        )


def read_word2vec_text(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """As gensim.models.keyedvectors does."""
    first, *lines = path.read_text().splitlines()
    count, dim = map(int, first.split())
    words, rows = [], np.zeros((count, dim), np.float32)
    for number, line in enumerate(lines):
        word, *values = line.rstrip().split(" ")
        words.append(word)
        rows[number] = [np.float32(value) for value in values]
    assert len(words) == count
    return rows, words


def read_word2vec_binary(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """As gensim.models.keyedvectors does."""
    with open(path, "rb") as file:
        count, dim = map(int, file.readline().split())
        words, rows = [], np.zeros((count, dim), np.float32)
        for number in range(count):
            word = b""
            while (byte := file.read(1)) != b" ":
                assert byte
                word += byte if byte != b"\n" else b""
            words.append(word.decode())
            rows[number] = np.frombuffer(file.read(4 * dim), "<f4")
        assert file.read() in (b"", b"\n")
    return rows, words


@pytest.mark.parametrize(
    ("name", "read"),
    [("w.vec", read_word2vec_text), ("w.txt", read_word2vec_text), ("w.bin", read_word2vec_binary)],
)
def test_word2vec_keeps_every_bit_and_every_key(
    url: str, tmp_path: Path, name: str, read: Any
) -> None:
    exported(url, "words", tmp_path / name)
    rows, words = read(tmp_path / name)
    np.testing.assert_array_equal(rows, ROWS)
    assert words == WORDS
    rows, words = read_back(tmp_path, tmp_path / name)
    np.testing.assert_array_equal(rows, ROWS)
    assert words == WORDS
    exported(url, "numbers", tmp_path / f"n-{name}")
    rows, words = read(tmp_path / f"n-{name}")
    np.testing.assert_array_equal(rows, HALVES.astype(np.float32))
    assert words == [str(number) for number in NUMBERS.tolist()]


def test_an_older_version_is_exported_by_its_number(url: str, tmp_path: Path) -> None:
    told = exported(url, "words", tmp_path / "old.npy", "--version", "1")
    assert told.endswith("5 rows of 20 float32, version 1 of words\n")
    np.testing.assert_array_equal(np.load(tmp_path / "old.npy"), OLD_ROWS)
    assert (tmp_path / "old.npy.keys").read_text().splitlines() == OLD_WORDS
    exported(url, "widened", tmp_path / "narrow.safetensors", "--version", "1")
    np.testing.assert_array_equal(
        load_file(tmp_path / "narrow.safetensors")["widened"], BRAINS[:, :2]
    )
    absent = ("export", "words", tmp_path / "3.npy", "--version", "3", "--url", url)
    assert "has no version 3; it has 1, 2" in invoke(*absent, check=False).stderr


def test_what_cannot_be_exported_leaves_no_file(url: str, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "there.npy").write_bytes(b"mine")
    (tmp_path / "k.npy.keys").write_bytes(b"mine")
    refused: dict[tuple[str, ...], str] = {
        ("words", "there.npy"): "is there already; --overwrite replaces it",
        ("words", "k.npy"): "k.npy.keys is there already",
        ("words", "w.parquet"): "says no format by its suffix",
        ("many", "m.vec"): "has no keys, which word2vec-text is made of",
        ("words", "w.bin", "--dtype", "float16"): "is of float32; leave --dtype out",
        ("wide", "w.npy"): "say --dtype float32",
        ("word", "w.npy"): "did you mean 'words'?",
        ("words", "no/w.npy"): "No such file or directory",
    }
    for (table, out, *options), message in refused.items():
        done = invoke("export", table, tmp_path / out, *options, "--url", url, check=False)
        assert done.returncode > 1, out
        assert message in done.stderr, out
        assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"there.npy", "k.npy.keys"}
    assert (tmp_path / "there.npy").read_bytes() == b"mine"
    exported(url, "words", tmp_path / "there.npy", "--overwrite")
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), ROWS)
    document = json.loads(invoke("tables", "words", "--json", "--url", url).stdout)
    assert [one["versions"] for one in document] == [[1, 2]]


def test_a_key_that_a_format_has_no_place_for_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    np.save(tmp_path / "r.npy", ROWS[:2])
    (tmp_path / "keys").write_text("plain\nnew york\n")
    invoke("import", "t", tmp_path / "r.npy", "--keys", tmp_path / "keys", "--data-dir", data)
    for name in ("t.vec", "t.bin"):
        command = ("export", "t", tmp_path / name, "--url", f"local:{data}")
        done = invoke(*command, check=False)
        assert "the key b'new york' of row 1 can't be written: a blank in it" in done.stderr
        assert not list(tmp_path.glob(f"{name}*"))
    exported(f"local:{data}", "t", tmp_path / "t.npy")
    assert read_back(tmp_path, tmp_path / "t.npy", "--keys", tmp_path / "t.npy.keys")[1] == [
        "plain",
        "new york",
    ]


def by_key(keys: list[Any], rows: NDArray[Any]) -> dict[Any, list[float]]:
    assert len(set(keys)) == len(keys) == len(rows)
    return dict(zip(keys, rows.tolist(), strict=True))


def test_an_open_table_of_integer_keys_is_exported_without_the_rows_that_went(
    url: str, tmp_path: Path
) -> None:
    expected = {key: USER_ROWS[key].tolist() for key in LEFT.tolist()}
    out, keys = tmp_path / "u.npy", tmp_path / "u.npy.keys.npy"
    told = exported(url, "users", out)
    assert told == f"{out} and {keys}: {len(LEFT)} rows of 160 float32, version 1 of users\n"
    assert by_key(np.load(keys).tolist(), np.load(out)) == expected
    rows, found = read_back(tmp_path, out, "--keys", keys)
    assert by_key(found, rows) == expected
    exported(url, "users", tmp_path / "u.safetensors", "--dtype", "float16")
    assert by_key(
        np.load(tmp_path / "u.safetensors.keys.npy").tolist(),
        load_file(tmp_path / "u.safetensors")["users"],
    ) == {key: USER_ROWS[key].astype(np.float16).tolist() for key in LEFT.tolist()}


def test_an_open_table_of_string_keys_is_exported_to_every_format(url: str, tmp_path: Path) -> None:
    expected = {word: row.tolist() for word, row in TAGS.items()}
    exported(url, "tags", tmp_path / "t.npy")
    keys = tmp_path / "t.npy.keys"
    assert np.load(tmp_path / "t.npy").dtype == np.float16
    assert by_key(keys.read_text().splitlines(), np.load(tmp_path / "t.npy")) == expected
    rows, words = read_back(tmp_path, tmp_path / "t.npy", "--keys", keys)
    assert by_key(words, rows) == expected
    for name, read in (("t.vec", read_word2vec_text), ("t.bin", read_word2vec_binary)):
        exported(url, "tags", tmp_path / name)
        rows, words = read(tmp_path / name)
        assert by_key(words, rows) == expected
        (tmp_path / f"again-{name}").mkdir()
        rows, words = read_back(tmp_path / f"again-{name}", tmp_path / name)
        assert by_key(words, rows) == expected
    told = exported(url, "tags", tmp_path / "old.safetensors", "--version", "1")
    assert told.endswith("5 rows of 6 float32, version 1 of tags\n")
    assert by_key(
        (tmp_path / "old.safetensors.keys").read_text().splitlines(),
        load_file(tmp_path / "old.safetensors")["tags"],
    ) == {word: expected[word] for word in WORDS[:5]}


def test_an_open_table_without_rows_makes_files_without_rows(url: str, tmp_path: Path) -> None:
    exported(url, "nobody", tmp_path / "n.npy")
    assert np.load(tmp_path / "n.npy").shape == (0, 3)
    keys = np.load(tmp_path / "n.npy.keys.npy")
    assert (keys.shape, keys.dtype) == ((0,), np.uint64)
    exported(url, "nobody", tmp_path / "n.safetensors", "--dtype", "float32")
    assert load_file(tmp_path / "n.safetensors")["nobody"].shape == (0, 3)


def test_keys_fit_their_vectors_while_rows_come_and_go(
    served: str, data_dir: Path, tmp_path: Path
) -> None:
    kept, others, dim = np.arange(1_500), np.arange(1_500, 9_500), 512
    ended, changes = threading.Event(), [0]
    with Client(served) as client:
        client.create_table("moving", dim=dim, keys="int64", rows_max=5_500)

        def put(keys: NDArray[np.int64]) -> None:
            client.upsert("moving", keys, np.repeat(keys.astype(np.float32)[:, None], dim, 1))

        def change() -> None:
            there = others
            while not ended.is_set():
                client.delete_rows("moving", there[:200])
                put(there[4_000:4_200])
                there = np.roll(there, -200)
                changes[0] += 1

        put(np.concatenate([kept, others[:4_000]]))
        thread = threading.Thread(target=change)
        thread.start()
        try:
            for number, url in enumerate((served, f"local:{data_dir}")):
                before, count = changes[0], 0
                while count < 3 or changes[0] < before + 10:
                    out = tmp_path / f"{number}-{count}.npy"
                    exported(url, "moving", out)
                    keys, rows = np.load(f"{out}.keys.npy"), np.load(out)
                    np.testing.assert_array_equal(rows, np.repeat(keys[:, None], dim, 1))
                    assert np.isin(kept, keys).all()
                    out.unlink()
                    count += 1
        finally:
            ended.set()
            thread.join()
