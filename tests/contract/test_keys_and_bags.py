"""Lookups by key and pooled bags, on every surface, judged by a dict and by the formulas."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from contract.conftest import ServedTables
from contract.surfaces import Bags, Surface
from gatherd.errors import (
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    NoKeys,
    TableNotFound,
)

EXAMPLES = settings(max_examples=10, deadline=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def needs(surface: Surface, method: str) -> None:
    if not surface.has(method):
        pytest.skip("this surface doesn't carry it")


def carries_strings(surface: Surface) -> bool:
    return surface.name not in ("rest-octets", "rest-npy")


@EXAMPLES
@given(data=st.data())
def test_string_keys_find_their_rows(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    if not carries_strings(surface):
        pytest.skip("raw arrays carry integer keys")
    words, rows = served.words, served.oracles["words"].rows
    # At least one key: an empty JSON list doesn't show whether it holds strings.
    asked = data.draw(st.lists(st.sampled_from([*words, "no such word"]), min_size=1, max_size=20))
    vectors, status = surface.lookup_keys("words", asked, missing="zero")
    known = {word: row for row, word in enumerate(words)}
    wanted = [rows[known[key]] if key in known else np.zeros(6, np.float32) for key in asked]
    np.testing.assert_array_equal(vectors, wanted)
    np.testing.assert_array_equal(status, [key not in known for key in asked])


@EXAMPLES
@given(data=st.data())
def test_integer_keys_find_their_rows(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    keys, rows = served.items, served.oracles["items"].rows
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    asked = data.draw(
        hnp.arrays(np.int64, shape, elements=st.sampled_from([*keys.tolist(), 5, -5]))
    )
    vectors, status = surface.lookup_keys("items", asked, missing="zero")
    known = {int(key): row for row, key in enumerate(keys)}
    flat = [
        rows[known[int(key)]] if int(key) in known else np.zeros(4, np.float32)
        for key in asked.reshape(-1)
    ]
    np.testing.assert_array_equal(vectors, np.array(flat).reshape(*shape, 4))
    np.testing.assert_array_equal(status.reshape(-1), [int(k) not in known for k in asked.flat])


def test_integer_keys_may_be_decimal_strings_in_json_alone(
    surface: Surface, served: ServedTables
) -> None:
    """JavaScript has no integers above 2**53."""
    if not carries_strings(surface):
        pytest.skip("raw arrays carry integer keys")
    keys, rows = served.items, served.oracles["items"].rows
    texts = np.array(keys, str).astype(object).tolist()
    if surface.name != "rest-json":
        with pytest.raises(InvalidArgument, match="keys are strings; the keys of this table"):
            surface.lookup_keys("items", texts)
        return
    vectors, _ = surface.lookup_keys("items", texts)
    np.testing.assert_array_equal(vectors, rows)
    with pytest.raises(KeyNotFound, match=r"keys\[0\]=4"):
        surface.lookup_keys("items", ["4"])
    for wrong in ("1.5", "+7", "0x7", "", "٣"):
        with pytest.raises(InvalidArgument):
            surface.lookup_keys("items", [texts[0], wrong])
    with pytest.raises(InvalidArgument, match="doesn't fit into 64 bits"):
        surface.lookup_keys("items", [str(2**64)])


def test_keys_of_is_the_way_back(surface: Surface, served: ServedTables) -> None:
    needs(surface, "keys_of")
    ids = np.array([[0, 3], [7, 3]])
    wanted = np.array(served.words, object)[ids].tolist()
    assert surface.keys_of("words", ids) == wanted
    assert surface.keys_of("items", ids) == served.items[ids].tolist()
    with pytest.raises(IdOutOfRange):
        surface.keys_of("words", np.array([len(served.words)]))
    with pytest.raises(NoKeys, match="table 'float32' has no keys"):
        surface.keys_of("float32", np.array([1]))


def test_ids_of_is_the_inverse_of_keys_of(surface: Surface, served: ServedTables) -> None:
    needs(surface, "ids_of")
    texts = [["queen", "king"], ["New York", "queen"]]
    assert surface.ids_of("words", texts) == [[1, 0], [2, 1]]
    assert surface.ids_of("items", served.items[[7, 3, 7]]) == [7, 3, 7]
    assert surface.ids_of("words", ["king", "nope"], allow_missing=True) == [0, -1]
    with pytest.raises(KeyNotFound, match=r"keys\[1\]='qeen'; did you mean 'queen'\?"):
        surface.ids_of("words", ["king", "qeen"])
    with pytest.raises(NoKeys, match="table 'float32' has no keys"):
        surface.ids_of("float32", np.array([1]))
    with pytest.raises(InvalidArgument, match="keys are integers; the keys of this table are str"):
        surface.ids_of("words", np.array([1]))


def test_a_key_that_is_not_utf8_is_found_and_given_back(
    surface: Surface, served: ServedTables
) -> None:
    needs(surface, "keys_of")
    if not carries_strings(surface):
        pytest.skip("raw arrays carry integer keys")
    row = served.words.index("caf\udce9")
    vectors, _ = surface.lookup_keys("words", ["caf\udce9"])
    np.testing.assert_array_equal(vectors, served.oracles["words"].rows[[row]])
    assert surface.keys_of("words", np.array([row])) == ["caf\udce9"]


def test_keys_are_listed_page_by_page_in_the_order_of_their_ids(
    surface: Surface, served: ServedTables
) -> None:
    needs(surface, "keys")
    count = len(served.words)
    assert surface.keys("words") == (served.words, list(range(count)), None)
    keys, ids, following = surface.keys("words", limit=3)
    assert (keys, ids, following) == (served.words[:3], [0, 1, 2], 3)
    assert surface.keys("words", limit=count, start=3) == (
        served.words[3:],
        list(range(3, count)),
        None,
    )
    assert surface.keys("items", limit=2, start=1) == (served.items[1:3].tolist(), [1, 2], 3)
    assert surface.keys("words", start=count) == ([], [], None)


@pytest.mark.parametrize("prefix", ["k", "ki", "caf\udce9", "caf", "\u65e5", "nothing", "king"])
def test_keys_are_found_by_their_first_bytes(
    surface: Surface, served: ServedTables, prefix: str
) -> None:
    needs(surface, "keys")
    wanted = [(word, row) for row, word in enumerate(served.words) if word.startswith(prefix)]
    keys, ids, following = surface.keys("words", prefix)
    assert (list(zip(keys, ids, strict=True)), following) == (wanted, None)


def test_a_page_of_keys_that_cannot_be_given_is_refused(
    surface: Surface, served: ServedTables
) -> None:
    needs(surface, "keys")
    with pytest.raises(NoKeys, match="table 'float32' has no keys"):
        surface.keys("float32")
    with pytest.raises(InvalidArgument, match="'items' are int64; a prefix is for strings"):
        surface.keys("items", "1")
    with pytest.raises(InvalidArgument, match="is beyond the"):
        surface.keys("words", start=len(served.words) + 1)
    with pytest.raises(InvalidArgument, match="a key has at most 1024"):
        surface.keys("words", "k" * 1025)
    with pytest.raises(TableNotFound, match="did you mean 'words'"):
        surface.keys("word")


def test_a_key_that_is_not_there_is_named(surface: Surface) -> None:
    if carries_strings(surface):
        with pytest.raises(KeyNotFound, match=r"table 'words' has no key keys\[1\]='nope'"):
            surface.lookup_keys("words", ["king", "nope"])
    with pytest.raises(KeyNotFound, match=r"table 'items' has no key keys\[0\]\[1\]=4"):
        surface.lookup_keys("items", np.array([[2**62, 4]]))


def test_keys_of_the_wrong_kind_are_refused(surface: Surface) -> None:
    with pytest.raises(InvalidArgument, match="keys are integers; the keys of this table are str"):
        surface.lookup_keys("words", np.array([1]))
    if carries_strings(surface):
        with pytest.raises(InvalidArgument, match="keys are strings; the keys of this table"):
            surface.lookup_keys("items", ["king"])


def test_keys_asked_of_a_table_that_has_none_are_refused_and_ids_always_taken(
    surface: Surface, served: ServedTables
) -> None:
    with pytest.raises(NoKeys, match="table 'float32' has no keys"):
        surface.lookup_keys("float32", np.array([1]))
    vectors, _ = surface.lookup("words", np.array([2]))
    np.testing.assert_array_equal(vectors, served.oracles["words"].rows[[2]])


def test_empty_and_overlong_keys_are_refused(surface: Surface) -> None:
    if not carries_strings(surface):
        pytest.skip("raw arrays carry integer keys")
    for key, message in (("", "empty"), ("k" * 2000, "1024")):
        with pytest.raises(InvalidArgument, match=message):
            surface.lookup_keys("words", ["king", key])


def pooled(rows: NDArray[Any], index: NDArray[Any], weights: NDArray[Any], mode: str) -> Any:
    """One bag by the formula, in float64."""
    x = rows[index].astype(np.float64)
    if not len(index):
        return np.zeros(rows.shape[1])
    w = weights.astype(np.float64)[:, None]
    match mode:
        case "sum":
            return (w * x).sum(0)
        case "mean":
            return (w * x).sum(0) / w.sum() if w.sum() else np.zeros(rows.shape[1])
        case "sqrtn":
            return (w * x).sum(0) / np.sqrt((w * w).sum()) if w.any() else np.zeros(rows.shape[1])
        case _:
            return x.max(0)


def split(values: NDArray[Any], offsets: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(values, offsets[1:]) if len(offsets) else []


@EXAMPLES
@given(data=st.data())
def test_bags_are_pooled_by_the_formula(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    needs(surface, "lookup_bags")
    table = data.draw(st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
    rows = served.oracles[table].rows
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    offsets = np.cumsum([0, *lengths[:-1]])
    near = st.integers(-1, len(rows))
    ids = data.draw(hnp.arrays(np.int64, sum(lengths), elements=near))
    mode = data.draw(st.sampled_from(["sum", "mean", "max", "sqrtn"]))
    missing = data.draw(st.sampled_from(["zero", "default", "skip"]))
    padding = data.draw(st.sampled_from([None, 0, -1]))
    weights = None
    if mode != "max" and data.draw(st.booleans()):
        positive = st.floats(0.125, 4, width=32)
        weights = data.draw(hnp.arrays(np.float32, sum(lengths), elements=positive))
    bags = Bags(ids, offsets, mode, weights, padding, missing)
    vectors, status = surface.lookup_bags(table, bags)

    is_padding = np.zeros(ids.shape, bool) if padding is None else ids == padding
    is_missing = ((ids < 0) | (ids >= len(rows))) & ~is_padding
    filler = np.zeros(rows.shape[1]) if missing == "zero" else served.oracles[table].default
    extended = np.vstack([rows.astype(np.float64), filler])
    index = np.where(is_missing, len(rows), ids)
    takes_part = ~is_padding & (~is_missing if missing == "skip" else True)
    each = np.ones(len(ids)) if weights is None else weights
    parts = zip(
        split(index, offsets), split(takes_part, offsets), split(each, offsets), strict=True
    )
    wanted = [pooled(extended, i[part], w[part], mode) for i, part, w in parts]
    np.testing.assert_allclose(vectors, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(status, is_missing.astype(np.uint8))


def test_bags_of_keys_and_of_many_tables(surface: Surface, served: ServedTables) -> None:
    needs(surface, "lookup_bags_many")
    offsets = np.array([0, 2, 2])
    bags = {
        "words": Bags(["king", "queen", "king"], offsets, "mean", by_keys=True),
        "items": Bags(served.items[:3], offsets, "mean", by_keys=True),
    }
    words, items = served.oracles["words"].rows, served.oracles["items"].rows
    answers = surface.lookup_bags_many(bags)
    assert list(answers) == ["words", "items"]
    king, queen = served.words.index("king"), served.words.index("queen")
    wanted = [words[[king, queen]].mean(0), np.zeros(6), words[king]]
    np.testing.assert_allclose(answers["words"], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        answers["items"], [items[:2].mean(0), np.zeros(4), items[2]], rtol=1e-5
    )
    one, _ = surface.lookup_bags("words", bags["words"])
    np.testing.assert_array_equal(one, answers["words"])


@pytest.mark.parametrize(
    ("bags", "error", "message"),
    [
        (Bags([1, 2], [1]), InvalidArgument, r"offsets\[0\]=1; the first bag begins at 0"),
        (Bags([1, 2], [0, 3]), InvalidArgument, r"offsets\[1\]=3 is past the end of 2 ids"),
        (Bags([1, 2], [0, 2, 1]), InvalidArgument, r"offsets\[2\]=1 is before offsets\[1\]=2"),
        (Bags([1, 2], [[0], [1]]), InvalidArgument, "offsets"),
        (Bags([1, 2], []), InvalidArgument, "no bag"),
        (Bags([1, 2], [0.5]), InvalidArgument, "integers"),
        (Bags([1, 2], [0], "median"), InvalidArgument, "mode"),
        (Bags([1, 2], [0], "max", [1.0, 1.0]), InvalidArgument, "'max' takes no weights"),
        (Bags([1, 2], [0], "sum", [1.0]), InvalidArgument, "2 ids and 1 weights"),
        (Bags([1, 300], [0]), IdOutOfRange, r"ids\[1\]=300 is out of range"),
        (Bags(["king"], [0], by_keys=True), NoKeys, "has no keys"),
    ],
)
def test_bags_that_cannot_be_pooled_are_refused(
    surface: Surface, bags: Bags, error: type[GatherdError], message: str
) -> None:
    needs(surface, "lookup_bags")
    with pytest.raises(error, match=message):
        surface.lookup_bags("float32", bags)


def test_a_missing_key_is_not_taken_for_padding(surface: Surface) -> None:
    needs(surface, "lookup_bags")
    bags = Bags(["king", "nope"], [0], padding_id=-1, by_keys=True)
    with pytest.raises(KeyNotFound, match=r"keys\[1\]='nope'"):
        surface.lookup_bags("words", bags)


def test_rows_cannot_be_skipped_outside_of_bags(surface: Surface) -> None:
    with pytest.raises(InvalidArgument, match="missing"):
        surface.lookup("float32", [1], missing="skip")
