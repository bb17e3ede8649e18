"""A batch of pushes against NumPy: its answers, its images, its record in the log, its rows.

Every batch begins with tables of zeros. Values are small integers, and the oracle goes by the
formulas of docs/optimizers.md, a push after the other, without any batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import (
    BadFile,
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    NoKeys,
    NonfiniteValues,
    TableNotFound,
    TableReadOnly,
    VersionMismatch,
)
from gatherd.store.catalog import read_catalog
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import ByKey
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.storage.images_record import VersionImages, logged_images
from gatherd_server.storage.records import Record, unpack
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.storage.wal_format import FrameKind
from gatherd_server.storage.wal_reader import Frame
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    VALUE_OPS,
    Push,
    PushResult,
    RequestId,
    SessionSequence,
    TableUpdate,
    UpdateOp,
)
from gatherd_server.writer.commit import (
    Commit,
    Submitted,
    compute,
    remember,
    store,
)
from gatherd_server.writer.versions import Versions
from gatherd_server.writer.window import Window, push_digest
from support.tables import drawn_table, make_data_dir
from writer.formulas import Oracle, values_of

ROWS, DIM = 9, 3
KEYS = [f"key {row}".encode() for row in range(ROWS)]
FIRST_LSN = 41
OPTIMIZERS: dict[str, tuple[DType, str, dict[str, float]]] = {
    "plain": (DType.FLOAT32, "sgd", {"lr": 0.5, "padding_id": 4}),
    "halves": (DType.FLOAT16, "adagrad", {"lr": 0.5}),
    "keyed": (DType.FLOAT32, "adam", {"lr": 0.5}),
}
REFUSALS: dict[str, type[GatherdError]] = {
    "id out of range": IdOutOfRange,
    "unknown key": KeyNotFound,
    "no keys": NoKeys,
    "no table": TableNotFound,
    "read-only": TableReadOnly,
    "other version": VersionMismatch,
    "other dim": InvalidArgument,
    "infinity": NonfiniteValues,
}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    path = tmp_path_factory.mktemp("commit")
    make_data_dir(path, drawn_table("frozen", ROWS, DIM, optimizer=None))
    with own_data_dir(path) as owned:
        for name, (dtype, optimizer, options) in OPTIMIZERS.items():
            is_keyed = name == "keyed"
            zeros = np.zeros((ROWS, DIM), dtype.storage)
            block = Block(zeros, StringKeys.of(KEYS) if is_keyed else None)
            owned.add_table(
                TableFiles(
                    *(name, dtype, ROWS, DIM, [block], {"made": "by a test"}),
                    key_kind=KeyKind.BYTES if is_keyed else None,
                    optimizer=Optimizer.parse(optimizer, options),
                )
            )
    opened = Versions(Files(), path, read_catalog(path), {})
    yield opened
    opened.close()


def reset(versions: Versions) -> dict[str, Oracle]:
    """Tables of zeros again, and oracles of them."""
    oracles = {}
    for name, (dtype, optimizer, options) in OPTIMIZERS.items():
        mapped = versions.live(name).mapped
        oracle = Oracle(
            Optimizer.parse(optimizer, options), dtype, np.zeros((ROWS, DIM), np.float32)
        )
        by_row = {key: slot for key, slot in oracle.slots.items() if key != "step"}
        scalars = {key: slot for key, slot in oracle.slots.items() if key == "step"}
        zeros = np.zeros_like(mapped.weights)
        mapped.apply(VersionImages("", 1, np.arange(ROWS), zeros, by_row, scalars))
        oracles[name] = oracle
    versions.take_dirty()
    return oracles


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A push, and the error that it has to be refused with, if any."""

    push: Push
    refused: type[GatherdError] | None


def values_for(draw: Any, count: int) -> NDArray[np.float32]:
    flat = draw(st.lists(st.integers(-4, 4), min_size=count * DIM, max_size=count * DIM))
    return np.array(flat, np.float32).reshape(count, DIM)


@st.composite
def pushes(draw: Any) -> Drawn:
    """Updates of one table or more, with duplicates, empty ones, and at times something wrong."""
    op = draw(st.sampled_from(VALUE_OPS))
    names = draw(st.lists(st.sampled_from(list(OPTIMIZERS)), min_size=1, max_size=3, unique=True))
    updates = []
    for name in names:
        ids = np.array(draw(st.lists(st.integers(0, ROWS - 1), max_size=6)), np.int64)
        lr = draw(st.sampled_from([None, 0.25])) if op is UpdateOp.APPLY_GRADIENTS else None
        by_key = name == "keyed" and draw(st.booleans())
        asked = ByKey(StringKeys.of([KEYS[row] for row in ids])) if by_key else ids
        updates.append(TableUpdate(name, asked, values_for(draw, ids.size), lr))
    wrong = draw(st.one_of(st.none(), st.none(), st.sampled_from(list(REFUSALS))))
    if wrong is not None:
        # Instead of a table's own update, among others that would be taken.
        bad = wrong_update(wrong)
        updates = [one for one in updates if one.table != bad.table]
        updates.insert(draw(st.integers(0, len(updates))), bad)
    request_id: RequestId = draw(
        st.one_of(
            st.none(),
            st.text("abc", min_size=1, max_size=8),
            st.builds(SessionSequence, st.binary(min_size=16, max_size=16), st.integers(1, 9)),
        )
    )
    return Drawn(Push(op, tuple(updates), request_id), REFUSALS[wrong] if wrong else None)


def wrong_update(wrong: str) -> TableUpdate:
    ids, values = np.array([1, 2]), np.ones((2, DIM), np.float32)
    match wrong:
        case "id out of range":
            return TableUpdate("plain", np.array([0, ROWS]), values)
        case "unknown key":
            return TableUpdate("keyed", ByKey(StringKeys.of([KEYS[0], b"nobody"])), values)
        case "no keys":
            return TableUpdate("plain", ByKey(StringKeys.of(KEYS[:2])), values)
        case "no table":
            return TableUpdate("nothing", ids, values)
        case "read-only":
            return TableUpdate("frozen", ids, values)
        case "other version":
            return TableUpdate("halves", ids, values, if_version=7)
        case "other dim":
            return TableUpdate("plain", ids, np.ones((2, DIM + 1), np.float32))
        case _:
            return TableUpdate("halves", ids, np.full((2, DIM), np.inf, np.float32))


def row_ids(update: TableUpdate) -> NDArray[np.int64]:
    asked = update.asked
    if isinstance(asked, ByKey):
        return np.array([KEYS.index(key) for key in asked.keys.tolist()], np.int64)
    return np.asarray(asked, np.int64)


def apply(oracles: dict[str, Oracle], push: Push) -> None:
    for update in push.updates:
        oracle, ids = oracles[update.table], row_ids(update)
        match push.op:
            case UpdateOp.SCATTER_ADD:
                oracle.scatter_add(ids, update.values)
            case UpdateOp.ASSIGN:
                oracle.assign(ids, update.values)
            case UpdateOp.APPLY_GRADIENTS:
                oracle.apply_gradients(ids, update.values, update.lr)


def submitted(drawn: list[Drawn]) -> list[Submitted]:
    return [Submitted(one.push, push_digest(one.push)) for one in drawn]


def as_logged(commit: Commit) -> Record:
    """The record as it is read back from the log."""
    return unpack(memoryview(b"".join(commit.record)), "a frame")


def bits_of(versions: Versions) -> dict[str, tuple[bytes, ...]]:
    mapped = {name: versions.live(name).mapped for name in OPTIMIZERS}
    return {
        name: (one.weights.tobytes(), *(slot.tobytes() for slot in one.slots.values()))
        for name, one in mapped.items()
    }


@settings(deadline=None, max_examples=80)
@given(batch=st.lists(pushes(), max_size=6))
def test_a_batch_is_what_its_pushes_are_one_after_the_other(
    versions: Versions, batch: list[Drawn]
) -> None:
    oracles = reset(versions)
    before = bits_of(versions)
    commit = compute(submitted(batch), versions, FIRST_LSN)
    assert bits_of(versions) == before, "computing changes nothing"
    lsn = FIRST_LSN
    for drawn, outcome in zip(batch, commit.outcomes, strict=True):
        if drawn.refused is not None:
            assert type(outcome) is drawn.refused
            continue
        assert outcome == PushResult(lsn, (1,) * len(drawn.push.updates))
        apply(oracles, drawn.push)
        lsn += 1
    assert (commit.first_lsn, commit.last_lsn) == (FIRST_LSN, lsn - 1)
    assert commit.is_empty == all(drawn.refused for drawn in batch)
    store(commit, versions)
    for name, oracle in oracles.items():
        mapped = versions.live(name).mapped
        tolerance = 2e-3 if oracle.dtype is DType.FLOAT16 else 1e-5
        rows = values_of(mapped.weights, oracle.dtype)
        np.testing.assert_allclose(rows, oracle.rows, tolerance, tolerance)
        assert mapped.slots.keys() == oracle.slots.keys()
        for slot, values in oracle.slots.items():
            np.testing.assert_allclose(mapped.slots[slot], values, 1e-5, 1e-6)


@settings(deadline=None, max_examples=50)
@given(batch=st.lists(pushes(), min_size=1, max_size=5))
def test_what_is_logged_makes_the_same_rows_and_answers_again(
    versions: Versions, batch: list[Drawn]
) -> None:
    reset(versions)
    commit = compute(submitted(batch), versions, FIRST_LSN)
    store(commit, versions)
    stored = bits_of(versions)
    record = as_logged(commit)
    reset(versions)
    by_uid = {versions.live(name).uid: versions.live(name) for name in OPTIMIZERS}
    # Twice: over pages that have some of it already nothing changes.
    for _ in range(2):
        for images in logged_images(record):
            live = by_uid[images.uid]
            assert images.version == live.version
            assert np.unique(images.rows).size == images.rows.size
            live.mapped.apply(images)
    assert bits_of(versions) == stored
    window = Window()
    remember(Frame(FrameKind.PUSHES, commit.first_lsn, commit.last_lsn, record), window)
    last: dict[RequestId, tuple[bytes, PushResult]] = {}
    for one, outcome in zip(submitted(batch), commit.outcomes, strict=True):
        if isinstance(outcome, PushResult) and one.push.request_id is not None:
            last[one.push.request_id] = one.digest, outcome
    for request_id, (digest, result) in last.items():
        assert window.find(request_id, digest) == result


@settings(deadline=None, max_examples=30)
@given(batch=st.lists(pushes(), min_size=1, max_size=5))
def test_a_refused_push_leaves_the_others_as_if_it_had_not_been_there(
    versions: Versions, batch: list[Drawn]
) -> None:
    good = [drawn for drawn in batch if drawn.refused is None]
    reset(versions)
    store(compute(submitted(good), versions, FIRST_LSN), versions)
    alone = bits_of(versions)
    reset(versions)
    store(compute(submitted(batch), versions, FIRST_LSN), versions)
    assert bits_of(versions) == alone


def one_push(op: UpdateOp, *updates: TableUpdate) -> Drawn:
    return Drawn(Push(op, updates), None)


def test_a_push_builds_on_those_before_it_in_the_batch(versions: Versions) -> None:
    reset(versions)
    ids, two = np.array([3]), np.full((1, DIM), 2, np.float32)
    batch = [
        one_push(UpdateOp.ASSIGN, TableUpdate("plain", ids, two)),
        one_push(UpdateOp.SCATTER_ADD, TableUpdate("plain", np.array([3, 3]), two.repeat(2, 0))),
        one_push(UpdateOp.APPLY_GRADIENTS, TableUpdate("plain", ids, two, lr=0.25)),
    ]
    commit = compute(submitted(batch), versions, FIRST_LSN)
    ((live, image),) = commit.images
    assert live.name == "plain"
    assert image.rows.tolist() == [3]
    assert values_of(image.weights, DType.FLOAT32).tolist() == [[5.5] * DIM]


def test_a_push_whose_sum_overflows_is_refused_and_one_that_would_mend_it_is_not(
    versions: Versions,
) -> None:
    reset(versions)
    ids, large = np.array([5]), np.full((1, DIM), 60_000, np.float32)
    batch = [
        one_push(UpdateOp.SCATTER_ADD, TableUpdate("halves", ids, large)),
        one_push(UpdateOp.SCATTER_ADD, TableUpdate("halves", ids, large)),
        one_push(UpdateOp.SCATTER_ADD, TableUpdate("halves", ids, -large)),
    ]
    commit = compute(submitted(batch), versions, FIRST_LSN)
    first, second, third = commit.outcomes
    assert first == PushResult(FIRST_LSN, (1,))
    assert isinstance(second, NonfiniteValues)
    assert second.metadata == {"table": "halves", "rows": "5", "count": "1"}
    assert third == PushResult(FIRST_LSN + 1, (1,))
    store(commit, versions)
    assert not versions.live("halves").mapped.weights.any()


def test_a_push_that_is_refused_for_one_table_changes_none(versions: Versions) -> None:
    reset(versions)
    before = bits_of(versions)
    ids, ones = np.array([1]), np.ones((1, DIM), np.float32)
    push = one_push(
        UpdateOp.ASSIGN,
        TableUpdate("plain", ids, ones),
        TableUpdate("halves", ids, ones * np.float32(math.nan)),
    )
    commit = compute(submitted([push]), versions, FIRST_LSN)
    assert commit.is_empty
    assert commit.images == []
    store(commit, versions)
    assert bits_of(versions) == before


@pytest.mark.parametrize("if_version", [LIVE_VERSION, 1])
def test_the_version_that_is_live_may_be_insisted_on(versions: Versions, if_version: int) -> None:
    reset(versions)
    update = TableUpdate("plain", np.array([[0], [2]]), np.ones((2, 1, DIM), np.float32))
    push = Push(UpdateOp.ASSIGN, (replace(update, if_version=if_version),))
    (outcome,) = compute([Submitted(push, b"")], versions, FIRST_LSN).outcomes
    assert outcome == PushResult(FIRST_LSN, (1,))


def test_only_versions_that_were_stored_into_are_dirty(versions: Versions) -> None:
    reset(versions)
    ids, ones = np.array([1]), np.ones((1, DIM), np.float32)
    batch = submitted([one_push(UpdateOp.ASSIGN, TableUpdate("halves", ids, ones))])
    commit = compute(batch, versions, FIRST_LSN)
    assert versions.take_dirty() == []
    store(commit, versions)
    assert versions.take_dirty() == [versions.live("halves").mapped]


DIRECTORIES: list[dict[str, Any]] = [
    {"pushes": []},
    {"images": [["uid", 1, []]]},
    {"images": [["uid", 1, [], []]]},
    {"images": [["uid", 1, ["sum"], []]]},
    {"images": 3},
]


@pytest.mark.parametrize("directory", DIRECTORIES, ids=str)
def test_a_frame_that_contradicts_itself_is_a_bad_file(directory: dict[str, Any]) -> None:
    with pytest.raises(BadFile, match="contradicts itself"):
        logged_images(Record(directory, [np.zeros(1, np.int64)], 0))
