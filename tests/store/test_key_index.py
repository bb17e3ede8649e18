"""A key finds its row or nothing, whatever the files have come to hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument, KeyNotFound, StorageError
from gatherd.store.given import NESTING_MAX
from gatherd.store.key_index import (
    KEY_BYTES_MAX,
    KEYS_DATA,
    KEYS_INTS,
    KEYS_JSON,
    KEYS_OFFSETS,
    KEYS_SLOTS,
    KeyIndex,
    KeyKind,
    StringKeys,
    as_keys,
    string_keys_from_wire,
)
from gatherd.store.keys import Keys, key_not_found_error
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder, rebuild_slots

WORDS = [b"king", b"queen", b"a", b"\xff\xfe", "œuf".encode(), b"nul\0", b"nul", b"two words"]
WORDS += [f"word{i}".encode() for i in range(12)]
INTS = np.array([0, -1, 1, 7, 2**62, -(2**63), 2**63 - 1, 12345, 99, 100], np.int64)


def build(folder: Path, kind: KeyKind, *batches: Keys) -> KeyIndex:
    with KeyIndexBuilder(Files(), folder, kind) as builder:
        for batch in batches:
            builder.add(batch)
        builder.finish()
    index = KeyIndex.open(folder)
    assert index is not None
    return index


def listed(keys: Keys) -> list[Any]:
    found: list[Any] = keys.tolist()
    return found


# What callers give


@pytest.mark.parametrize(
    ("given_keys", "flat", "shape"),
    [
        ("king", [b"king"], ()),
        (b"\xff", [b"\xff"], ()),
        (["king", "queen"], [b"king", b"queen"], (2,)),
        ([["a"], ["œ"]], [b"a", "œ".encode()], (2, 1)),
        (("a", b"b"), [b"a", b"b"], (2,)),
        (["\udcff"], [b"\xff"], (1,)),
        (np.array([["a", "bb"]]), [b"a", b"bb"], (1, 2)),
        (np.array([b"a", b"bb"]), [b"a", b"bb"], (2,)),
        (np.array(["a", b"b"], object), [b"a", b"b"], (2,)),
        (np.str_("a"), [b"a"], ()),
        ([np.str_("a"), "b"], [b"a", b"b"], (2,)),
        ([np.array(["a", "b"])], [b"a", b"b"], (1, 2)),
        (["x" * KEY_BYTES_MAX], [b"x" * KEY_BYTES_MAX], (1,)),
    ],
)
def test_strings_become_their_bytes(
    given_keys: object, flat: list[bytes], shape: tuple[int, ...]
) -> None:
    keys = as_keys(given_keys)
    assert isinstance(keys, StringKeys)
    assert (keys.tolist(), keys.shape, keys.size) == (flat, shape, len(flat))


@pytest.mark.parametrize(
    ("given_keys", "expected"),
    [
        (7, np.array(7)),
        ([[1, 2], [3, -4]], np.array([[1, 2], [3, -4]])),
        ([2**64 - 1], np.array([2**64 - 1], np.uint64)),
        (np.array([[5]], np.int16), np.array([[5]], np.int16)),
        (np.array([5], ">u8"), np.array([5], np.uint64)),
        ([np.uint8(3), 4], np.array([3, 4])),
        ([], np.empty(0, np.int64)),
        ([[], []], np.empty((2, 0), np.int64)),
        (np.empty((0, 3)), np.empty((0, 3), np.int64)),
        (np.array([], "U4"), np.empty(0, np.int64)),
    ],
)
def test_integers_stay_integers(given_keys: object, expected: NDArray[Any]) -> None:
    keys = as_keys(given_keys)
    assert isinstance(keys, np.ndarray)
    assert keys.dtype == expected.dtype
    np.testing.assert_array_equal(keys, expected)


@pytest.mark.parametrize(
    ("given_keys", "message"),
    [
        (["a", ""], r"keys\[1\] is empty"),
        ([["a"], ["b" * (KEY_BYTES_MAX + 1)]], r"keys\[1\]\[0\] has 1025 bytes; .* at most 1024"),
        (["é" * 513], r"keys\[0\] has 1026 bytes"),
        (["a", 1], r"keys\[0\] is a string and keys\[1\] an integer"),
        ([[1], [b"x"]], r"keys\[0\]\[0\] is an integer and keys\[1\]\[0\] a string"),
        ([1, 2.0], r"keys\[1\] is the float 2.0; keys are strings or integers"),
        ([True], r"keys\[0\] is the bool True"),
        (["a", None], r"keys\[1\] is null"),
        (None, "keys is null"),
        (2.5, "keys is the float 2.5"),
        ({"a": 1}, "keys is a dict"),
        (np.array([1.5]), r"keys\[0\] is the float 1.5"),
        (np.array([True]), r"keys\[0\] is the bool True"),
        (np.array(["2020-01-01"], "M8[D]"), "not datetime64"),
        ([["a"], ["b", "c"]], "ragged"),
        ([["a"], "b"], "ragged"),
        ([2**64], r"keys\[0\]=18446744073709551616 doesn't fit into 64 bits"),
        ([0, -(2**63) - 1], r"keys\[1\]=-9223372036854775809 doesn't fit"),
        ([-5, 2**63], r"keys\[0\]=-5 is negative and keys\[1\]=9223372036854775808"),
        (["\ud800"], r"keys\[0\]='\\ud800' isn't text"),
    ],
)
def test_what_is_no_key_is_named(given_keys: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        as_keys(given_keys)


def test_deep_nesting_is_refused() -> None:
    keys: Any = "a"
    for _ in range(NESTING_MAX + 1):
        keys = [keys]
    with pytest.raises(InvalidArgument, match=f"deeper than {NESTING_MAX} levels"):
        as_keys(keys)


@given(st.lists(st.binary(min_size=1, max_size=30)))
def test_keys_cross_the_wire(keys: list[bytes]) -> None:
    sent = StringKeys.of(keys)
    lengths = np.diff(sent.offsets).astype("<u4").tobytes()
    got = string_keys_from_wire(sent.data.tobytes(), lengths, (len(keys), 1))
    assert (got.tolist(), got.shape) == (keys, (len(keys), 1))


@pytest.mark.parametrize(
    ("data", "lengths", "shape", "message"),
    [
        (b"ab", [1, 2], (2,), "add up to 3 bytes; 2 were sent"),
        (b"ab", [1], (1,), "add up to 1 bytes; 2 were sent"),
        (b"ab", [1, 1], (3,), r"12 bytes \(uint32 each\); 8 were sent"),
        (b"ab", [2, 0], (1, 2), r"keys\[0\]\[1\] is empty"),
        (b"a" * 1025, [1025], (1,), r"keys\[0\] has 1025 bytes"),
        (b"", [], (-1, 0), "negative"),
        (b"a", [1], (1,) * 33, "33 dimensions"),
        (b"", [2**32 - 1] * 2, (2,), "add up to 8589934590"),
    ],
)
def test_bad_wire_keys_are_refused(
    data: bytes, lengths: list[int], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        string_keys_from_wire(data, np.array(lengths, "<u4").tobytes(), shape)


# Looking up


def test_a_folder_without_keys_has_no_index(tmp_path: Path) -> None:
    assert KeyIndex.open(tmp_path) is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=20), max_size=40), max_size=4),
    st.lists(st.binary(min_size=1, max_size=20), max_size=20),
)
def test_string_keys_are_found_as_in_a_dict(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], others: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    expected: dict[bytes, int] = {}
    with KeyIndexBuilder(Files(), folder, KeyKind.BYTES) as builder:
        for batch in batches:
            fresh = []
            for key in batch:
                fresh.append(key not in expected)
                expected.setdefault(key, len(expected))
            assert builder.add(StringKeys.of(batch)).tolist() == fresh
        assert builder.count == len(expected)
        builder.finish()
    index = KeyIndex.open(folder)
    assert index is not None
    assert (index.count, index.kind) == (len(expected), KeyKind.BYTES)
    asked = [*expected, *others]
    rows = index.rows_of(StringKeys.of(asked))
    assert rows.tolist() == [expected.get(key, -1) for key in asked]
    assert listed(index.keys_of(np.arange(index.count))) == list(expected)
    index.verify()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([KeyKind.INT64, KeyKind.UINT64]),
    st.lists(st.integers(0, 2**64 - 1), max_size=200),
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
)
def test_integer_keys_are_found_as_in_a_dict(
    tmp_path_factory: pytest.TempPathFactory, kind: KeyKind, bits: list[int], others: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    dtype = np.int64 if kind is KeyKind.INT64 else np.uint64
    keys = np.array(bits, np.uint64).view(dtype)
    expected: dict[int, int] = {}
    for key in keys.tolist():
        expected.setdefault(key, len(expected))
    index = build(folder, kind, keys)
    asked = np.array([*bits, *others], np.uint64).view(dtype)
    assert index.rows_of(asked).tolist() == [expected.get(key, -1) for key in asked.tolist()]
    back = index.keys_of(np.arange(index.count).reshape(-1, 1))
    assert isinstance(back, np.ndarray)
    assert back.dtype == dtype
    assert back.shape == (index.count, 1)
    assert back.reshape(-1).tolist() == list(expected)


def test_shapes_are_kept(tmp_path: Path) -> None:
    index = build(tmp_path, KeyKind.BYTES, StringKeys.of(WORDS))
    assert index.rows_of(as_keys([["queen"], ["none"]])).tolist() == [[1], [-1]]
    assert index.rows_of(as_keys("a")).shape == ()
    assert index.rows_of(as_keys([[], []])).shape == (2, 0)
    back = index.keys_of(np.array([[3], [0]]))
    assert isinstance(back, StringKeys)
    assert (back.shape, back.tolist()) == ((2, 1), [b"\xff\xfe", b"king"])


def test_an_integer_that_the_kind_cannot_hold_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "u").mkdir()
    signed = build(tmp_path / "i", KeyKind.INT64, np.array([-1, 5]))
    unsigned = build(tmp_path / "u", KeyKind.UINT64, np.array([2**64 - 1, 5], np.uint64))
    assert signed.rows_of(np.array([2**64 - 1, 5], np.uint64)).tolist() == [-1, 1]
    assert unsigned.rows_of(np.array([-1, 5])).tolist() == [-1, 1]
    assert unsigned.rows_of(np.array([5], np.int8)).tolist() == [1]


@pytest.mark.parametrize(
    ("kind", "stored", "asked", "message"),
    [
        (KeyKind.BYTES, StringKeys.of([b"a"]), np.array([1]), "integers; .* are strings"),
        (KeyKind.INT64, np.array([1]), StringKeys.of([b"a"]), "strings; .* are int64"),
        (KeyKind.UINT64, np.array([1]), StringKeys.of([b"a"]), "strings; .* are uint64"),
    ],
)
def test_keys_of_the_wrong_kind_are_refused(
    tmp_path: Path, kind: KeyKind, stored: Keys, asked: Keys, message: str
) -> None:
    index = build(tmp_path, kind, stored)
    with pytest.raises(InvalidArgument, match=message):
        index.rows_of(asked)
    (tmp_path / "other").mkdir()
    with KeyIndexBuilder(Files(), tmp_path / "other", kind) as builder:
        with pytest.raises(InvalidArgument, match=kind.value):
            builder.add(asked)


def test_an_index_grows_over_many_batches(tmp_path: Path) -> None:
    keys = np.random.default_rng(1).permutation(300_000)
    index = build(tmp_path, KeyKind.INT64, *np.split(keys, 30), keys[:1000])
    assert index.count == keys.size
    np.testing.assert_array_equal(index.rows_of(keys), np.arange(keys.size))
    assert (index.rows_of(keys + keys.size) == -1).all()


def test_plain_numpy_reads_the_files(tmp_path: Path) -> None:
    build(tmp_path, KeyKind.BYTES, StringKeys.of(WORDS))
    offsets = np.load(tmp_path / KEYS_OFFSETS, mmap_mode="r")
    data = np.load(tmp_path / KEYS_DATA, mmap_mode="r")
    assert data[offsets[1] : offsets[2]].tobytes() == b"queen"


def _unmix(h: int) -> int:
    """The z that splitmix64's finalizer makes h of."""

    def unshift(value: int, by: int) -> int:
        found = value
        for _ in range(64 // by + 1):
            found = value ^ (found >> by)
        return found

    z = unshift(h, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return unshift(z, 30)


def test_keys_chosen_to_collide_cost_another_seed_and_no_endless_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = iter([42, 43])
    monkeypatch.setattr("secrets.randbits", lambda _: next(seeds))
    hostile = np.array([_unmix(i << 30) ^ 42 for i in range(3000)], np.uint64)
    index = build(tmp_path, KeyKind.UINT64, hostile)
    assert json.loads((tmp_path / KEYS_JSON).read_bytes())["seed"] == f"{43:016x}"
    np.testing.assert_array_equal(index.rows_of(hostile), np.arange(3000))


def test_errors_name_the_first_keys_that_are_not_there() -> None:
    keys = as_keys([["king"], ["x" * 100], ["\udcff"]])
    rows = np.array([[0], [-1], [-1]])
    error = key_not_found_error("words", keys, rows)
    assert isinstance(error, KeyNotFound)
    assert str(error) == (
        f"table 'words' has no key keys[1][0]='{'x' * 64}'…, keys[2][0]='\\udcff'"
    )
    assert error.metadata["offenders"] == "2"
    many = key_not_found_error("ids", np.arange(9), np.full(9, -1))
    assert "keys[4]=4 (and 4 more)" in str(many)


# Damage


@pytest.fixture(params=["bytes", "int64"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Keys]:
    """A small index's folder, and its keys in row order."""
    kind = KeyKind(request.param)
    keys: Keys = StringKeys.of(WORDS) if kind is KeyKind.BYTES else INTS
    build(tmp_path, kind, keys)
    return tmp_path, keys


def absent(keys: Keys) -> Keys:
    if isinstance(keys, StringKeys):
        return StringKeys.of([key + b"!" for key in keys.tolist()])
    return keys + 3


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("keys.*"))


def check_never_wrong(folder: Path, keys: Keys) -> None:
    """Each key is at its row, or not there; a key that was never stored isn't there."""
    try:
        index = KeyIndex.open(folder)
    except BadFile:
        return
    assert index is not None
    rows = index.rows_of(keys)
    assert set(np.unique(rows[rows != np.arange(keys.size)])) <= {-1}
    assert (index.rows_of(absent(keys)) == -1).all()
    for row in rows[rows >= 0]:
        assert listed(index.keys_of(np.array([row]))) == [listed(keys)[row]]


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_changed_byte_gives_the_right_row_or_none(small: tuple[Path, Keys], flip: int) -> None:
    folder, keys = small
    for path in files_of(folder):
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            check_never_wrong(folder, keys)
            with pytest.raises(BadFile, match=r"keys\."):
                verify(folder)
        path.write_bytes(whole)
    verify(folder)


def verify(folder: Path) -> None:
    index = KeyIndex.open(folder)
    assert index is not None
    index.verify()


def test_a_file_cut_or_grown_anywhere_is_refused(small: tuple[Path, Keys]) -> None:
    folder, _ = small
    for path in files_of(folder):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(BadFile, match=r"keys\."):
                KeyIndex.open(folder)
        path.write_bytes(whole + b"\0")
        with pytest.raises(BadFile, match=r"keys\."):
            KeyIndex.open(folder)
        path.unlink()
        with pytest.raises(BadFile, match=r"keys\."):
            KeyIndex.open(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("seed", range(20))
def test_slots_of_noise_end_every_probe(small: tuple[Path, Keys], seed: int) -> None:
    folder, keys = small
    path = folder / KEYS_SLOTS
    noise = np.random.default_rng(seed).integers(1, 256, path.stat().st_size - 128, np.uint8)
    path.write_bytes(path.read_bytes()[:128] + noise.tobytes())
    check_never_wrong(folder, keys)


def test_slots_that_name_every_row_find_only_the_right_one(small: tuple[Path, Keys]) -> None:
    folder, keys = small
    path = folder / KEYS_SLOTS
    whole = path.read_bytes()
    slots = np.frombuffer(whole[128:], np.uint64)
    fingerprints = slots[slots > 0] >> np.uint64(40)
    for row in [*range(keys.size + 2), 2**40 - 2]:
        for fingerprint in fingerprints:
            slot = (int(fingerprint) << 40) | (row + 1)
            path.write_bytes(whole[:128] + np.full(slots.size, slot, np.uint64).tobytes())
            check_never_wrong(folder, keys)


def test_verify_names_the_block(tmp_path: Path) -> None:
    index = build(tmp_path, KeyKind.INT64, np.arange(600_000))
    with open(tmp_path / KEYS_INTS, "r+b") as file:
        file.seek(4_500_000)
        file.write(b"\xff")
    with pytest.raises(BadFile, match=r"keys\.npy: bytes 4194304 to 4800128"):
        index.verify()


# Mending


def test_slots_are_rebuilt_to_the_same_bytes(small: tuple[Path, Keys]) -> None:
    folder, keys = small
    before = {path.name: path.read_bytes() for path in files_of(folder)}
    for spoil in (b"", b"nonsense", before[KEYS_SLOTS][:200], None):
        if spoil is None:
            (folder / KEYS_SLOTS).unlink()
        else:
            (folder / KEYS_SLOTS).write_bytes(spoil)
        rebuild_slots(Files(), folder)
        assert {path.name: path.read_bytes() for path in files_of(folder)} == before
    check_never_wrong(folder, keys)


def test_an_index_is_rebuilt_from_its_keys_alone(small: tuple[Path, Keys]) -> None:
    folder, keys = small
    (folder / KEYS_SLOTS).unlink()
    (folder / KEYS_JSON).write_bytes(b"{}")
    rebuild_slots(Files(), folder)
    index = KeyIndex.open(folder)
    assert index is not None
    index.verify()
    np.testing.assert_array_equal(index.rows_of(keys), np.arange(keys.size))


def test_damaged_keys_are_not_rebuilt_upon(small: tuple[Path, Keys]) -> None:
    folder, _ = small
    before = (folder / KEYS_SLOTS).read_bytes()
    path = folder / (KEYS_DATA if (folder / KEYS_DATA).exists() else KEYS_INTS)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadFile, match="bytes 0 to"):
        rebuild_slots(Files(), folder)
    assert (folder / KEYS_SLOTS).read_bytes() == before


def test_offsets_of_noise_are_not_rebuilt_upon(tmp_path: Path) -> None:
    build(tmp_path, KeyKind.BYTES, StringKeys.of(WORDS))
    (tmp_path / KEYS_JSON).unlink()
    path = tmp_path / KEYS_OFFSETS
    whole = path.read_bytes()
    for position in range(128, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x80
        path.write_bytes(damaged)
        with pytest.raises(BadFile, match="damaged"):
            rebuild_slots(Files(), tmp_path)


# Writing


class FullDisk(Files):
    """A disk with room for so many allocations."""

    def __init__(self, room: int) -> None:
        self.room = room

    def allocate(self, fd: int, byte_count: int, path: Path, begin: int = 0) -> None:
        self.room -= 1
        if self.room < 0:
            raise StorageError(f"{path}: the disk is full")
        super().allocate(fd, byte_count, path, begin)


def open_paths() -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(link.readlink())


def add_until_full(builder: KeyIndexBuilder, words: StringKeys) -> None:
    for _ in range(20):
        builder.add(words)
        words = StringKeys.of([key + b"." for key in words.tolist()])


def test_a_full_disk_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    for room in range(9):
        folder = tmp_path / str(room)
        folder.mkdir()
        words = StringKeys.of([f"word number {i}".encode() for i in range(20_000)])
        with KeyIndexBuilder(FullDisk(2 + room), folder, KeyKind.BYTES) as builder:
            with pytest.raises(StorageError, match="full"):
                add_until_full(builder, words)
        assert not [path for path in open_paths() if str(folder) in path]


def test_a_disk_full_at_the_end_leaves_nothing_open(tmp_path: Path) -> None:
    with KeyIndexBuilder(FullDisk(2), tmp_path, KeyKind.BYTES) as builder:
        builder.add(StringKeys.of([b"one"]))
        with pytest.raises(StorageError, match="full"):
            builder.finish()
    assert not [path for path in open_paths() if str(tmp_path) in path]


@pytest.mark.parametrize("room", range(2))
def test_a_disk_full_at_the_start_leaves_nothing_open(tmp_path: Path, room: int) -> None:
    with pytest.raises(StorageError, match="full"):
        KeyIndexBuilder(FullDisk(room), tmp_path, KeyKind.BYTES)
    assert not [path for path in open_paths() if str(tmp_path) in path]


def test_an_unfinished_index_is_none(tmp_path: Path) -> None:
    with KeyIndexBuilder(Files(), tmp_path, KeyKind.INT64) as builder:
        builder.add(np.arange(5))
    with pytest.raises(BadFile, match=r"keys\.json isn't there"):
        KeyIndex.open(tmp_path)


PRIVATE = """
import sys
from pathlib import Path
import numpy as np
from gatherd.store.kernels import compiled
from gatherd.store.key_index import KeyIndex

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))

compiled.warm()
keys = np.arange(1024)
before = private()
index = KeyIndex.open(Path(sys.argv[1]))
index.populate()
for start in range(0, 1_990_000, 1024):
    assert (index.rows_of(keys + start) == start + keys).all()
print(private() - before)
"""


def test_an_open_index_costs_no_private_memory(tmp_path: Path) -> None:
    index = build(tmp_path, KeyKind.INT64, np.arange(2_000_000))
    assert index.nbytes > 40 << 20
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4 << 10
