"""The compiled answer is the general way's, byte for byte, or none."""

import time
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import mutated
from gatherd.errors import GatherdError
from gatherd.store.format import read_layout
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.live import LiveTables
from gatherd.store.table import Table
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.access.callers import Caller, Grant, Scope
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import Publish
from gatherd_server.wire.compiled.answers import (
    LOOKUP,
    LOOKUP_BAGS,
    LOOKUP_BAGS_MANY,
    LOOKUP_MANY,
    NOT_MINE,
    Answers,
    room_of,
)
from gatherd_server.wire.compiled.directory import Counted, Directory
from support.answering import LIMITS, WORDS, TwoWays, two_ways
from support.request_bytes import Asking, encoded, string_keys, tensor
from support.small_engine import lookup_request
from support.tables import drawn_table, make_data_dir

MESSAGES = (LOOKUP, LOOKUP_MANY, LOOKUP_BAGS, LOOKUP_BAGS_MANY)


def _seeds() -> list[bytes]:
    """Requests of all kinds, short enough to be hit where it matters."""
    asking = Asking(
        {"wide": 70_000, "live-float16": 200, "words": 100}, {"words": WORDS}, Random(2)
    )
    lookups = [asking.lookup() for _ in range(8)]
    bags = [asking.bags() for _ in range(8)]
    many: list[Message] = [
        embedding_pb2.LookupManyRequest(lookups=lookups[:3]),
        embedding_pb2.LookupBagsManyRequest(bags=bags[:3]),
    ]
    return [one.SerializeToString() for one in (*lookups, *bags, *many)]


SEEDS = _seeds()


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> TwoWays:
    return two_ways(tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("message", MESSAGES)
def test_nearly_every_sound_request_is_answered_and_alike(ways: TwoWays, message: int) -> None:
    asking = Asking(ways.row_counts, ways.keys, Random(message))
    bodies = [asking.request(message).SerializeToString() for _ in range(400)]
    answered = sum(ways.same(message, body) for body in bodies)
    sound = sum(isinstance(ways.general(message, body), bytes) for body in bodies)
    assert answered >= 0.99 * sound > 300


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), message=st.sampled_from(MESSAGES))
def test_what_an_odd_encoder_sends_is_answered_alike(
    ways: TwoWays, seed: int, message: int
) -> None:
    random = Random(seed)
    for oddity in (0.02, 0.1, 0.4):
        request = Asking(ways.row_counts, ways.keys, random).request(message, is_sound=False)
        ways.same(message, encoded(request, random, oddity))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(body=mutated(SEEDS), message=st.sampled_from(MESSAGES))
def test_what_befell_a_request_changes_nothing(ways: TwoWays, body: bytes, message: int) -> None:
    ways.same(message, body)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_request_cut_anywhere_is_answered_alike(ways: TwoWays, message: int) -> None:
    asking, body = Asking(ways.row_counts, ways.keys, Random(40 + message)), b""
    while not body:  # of no table at all
        body = asking.request(message).SerializeToString()
    for end in range(len(body)):
        ways.same(message, body[:end])


# A third judge: protobuf reads the reply, NumPy knows the vectors


@pytest.mark.parametrize("table", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("reply", [1, 2, 3])
def test_the_vectors_are_the_tables_own_in_the_dtype_asked_for(
    ways: TwoWays, table: str, reply: int
) -> None:
    ids = np.random.default_rng(5).integers(0, 300, (3, 50)).astype(np.uint16)
    request = embedding_pb2.LookupManyRequest(lookups=[lookup_request(table, ids, dtype=reply)])
    given = ways.compiled(LOOKUP_MANY, request.SerializeToString())
    assert given is not None
    (answer,) = embedding_pb2.LookupManyResponse.FromString(given).lookups
    dtype = np.dtype([np.float32, np.float16, ml_dtypes.bfloat16][reply - 1])
    vectors = np.frombuffer(answer.vectors.data, dtype).reshape(tuple(answer.vectors.shape))
    expected = ways.rows[table][ids]
    if table == "float64" and reply == 3:
        expected = expected.astype(np.float32)
    np.testing.assert_array_equal(vectors, expected.astype(dtype))
    assert answer.version == 1
    assert answer.status == b""


@pytest.mark.parametrize("reply", ["DTYPE_FLOAT32", "DTYPE_FLOAT16", "DTYPE_BFLOAT16"])
@pytest.mark.parametrize("table", ["odd-float32", "odd-float16", "odd-bfloat16", "odd-float64"])
def test_every_bit_of_strange_numbers_is_the_general_ways(
    ways: TwoWays, table: str, reply: str
) -> None:
    body = lookup_request(table, np.arange(40), dtype=reply).SerializeToString()
    assert ways.same(LOOKUP, body)


def test_a_missing_key_has_a_status_and_the_default_vector(ways: TwoWays) -> None:
    request = embedding_pb2.LookupRequest(
        table="words", keys=string_keys([b"king", b"nobody"], (2,)), missing="MISSING_DEFAULT"
    )
    given = ways.compiled(LOOKUP, request.SerializeToString())
    assert given is not None
    answer = embedding_pb2.LookupResponse.FromString(given)
    assert answer.status == b"\0\1"
    vectors = np.frombuffer(answer.vectors.data, np.float32).reshape(2, 6)
    np.testing.assert_array_equal(vectors[0], ways.rows["words"][0])
    np.testing.assert_array_equal(vectors[1], ways.tables["words"].default_vector())


# What is left to the general way


@pytest.mark.parametrize(
    "request_",
    [
        lookup_request("nobody", [1]),
        lookup_request("float32", [1, 300]),
        lookup_request("float32", [-1]),
        lookup_request("float32", [1], version=2),
        lookup_request("float32", [1], version=2**63),
        lookup_request("float32", [1], missing="MISSING_SKIP"),
        lookup_request("float32", [1], dtype="DTYPE_FLOAT64"),
        lookup_request("float32", np.zeros(3, np.float32)),
        lookup_request("float32", np.zeros(20_001, np.int64)),
        embedding_pb2.LookupRequest(table="float32"),
        embedding_pb2.LookupRequest(table="float32", keys=string_keys([b"king"], (1,))),
        embedding_pb2.LookupRequest(table="words", keys=string_keys([b"nobody"], (1,))),
        embedding_pb2.LookupRequest(table="words", keys=string_keys([b""], (1,))),
        embedding_pb2.LookupRequest(table="words", keys=string_keys([b"king"], (2,))),
    ],
    ids=str,
)
def test_an_error_is_the_general_ways_to_tell(
    ways: TwoWays, request_: embedding_pb2.LookupRequest
) -> None:
    body = request_.SerializeToString()
    assert ways.compiled(LOOKUP, body) is None
    assert isinstance(ways.general(LOOKUP, body), GatherdError)


@pytest.mark.parametrize("reply", ["DTYPE_FLOAT32", "DTYPE_FLOAT16"])
def test_a_row_that_is_being_written_is_waited_for_elsewhere(ways: TwoWays, reply: str) -> None:
    lookup = lookup_request("live-float32", [3, 4], dtype=reply).SerializeToString()
    bags = [
        embedding_pb2.LookupBagsRequest(
            lookup=lookup_request("live-float32", [3, 4]), offsets=tensor(np.zeros(1, np.int64)),
            pooling=pooling,
        ).SerializeToString()
        for pooling in (embedding_pb2.POOLING_SUM, embedding_pb2.POOLING_MAX)
    ]  # fmt: skip
    ways.counters[4] += 1
    try:
        assert ways.compiled(LOOKUP, lookup) is None
        assert [ways.compiled(LOOKUP_BAGS, body) for body in bags] == [None, None]
    finally:
        ways.counters[4] += 1
    assert ways.same(LOOKUP, lookup)
    assert all(ways.same(LOOKUP_BAGS, body) for body in bags)


@pytest.mark.parametrize("reply", ["DTYPE_FLOAT32", "DTYPE_BFLOAT16"])
@pytest.mark.parametrize("message", [LOOKUP, LOOKUP_BAGS])
def test_pieces_stop_before_a_row_that_is_being_written(
    ways: TwoWays, message: int, reply: str
) -> None:
    lookup = lookup_request("live-float32", np.arange(60), dtype=reply)
    request: Message = lookup
    if message == LOOKUP_BAGS:
        request = embedding_pb2.LookupBagsRequest(lookup=lookup, offsets=tensor(np.arange(60)))
    body = request.SerializeToString()
    whole, out = ways.compiled(message, body), np.zeros(1000, np.uint8)
    assert whole is not None
    pieces = ways.begun(message, body, out, 500)
    assert pieces is not None
    found = out[: pieces.written].tobytes()
    ways.counters[30] += 1
    try:
        out = np.zeros(len(whole), np.uint8)
        found += out[: pieces.go_on(out, 1 << 20)].tobytes()
        vector_bytes = 24 * (4 if reply == "DTYPE_FLOAT32" else 2)
        assert len(found) == len(whole) - 30 * vector_bytes
        assert pieces.go_on(out, 1 << 20) == 0
        list(ways.counts.since())
        assert ways.begun(message, body, out, 1 << 20) is None
        assert ways.begun(message, body, out, 500) is not None
    finally:
        ways.counters[30] += 1
    assert found + out[: pieces.go_on(out, 1 << 20)].tobytes() == whole


def test_pieces_say_what_takes_longer_than_a_turn(ways: TwoWays) -> None:
    bags = embedding_pb2.LookupBagsRequest(
        lookup=lookup_request("float32", np.arange(300)), offsets=tensor(np.array([0, 10, 290]))
    )
    out = np.zeros(10, np.uint8)
    pieces = ways.begun(LOOKUP_BAGS, bags.SerializeToString(), out, 0)
    assert pieces is not None
    assert pieces.unit_work == 280 * 280
    statuses = lookup_request("float32", np.arange(300), missing="MISSING_ZERO")
    pieces = ways.begun(LOOKUP, statuses.SerializeToString(), out, 0)
    assert pieces is not None
    assert (pieces.unit_work, pieces.written) == (280, 0)
    assert 300 < pieces.unit_bytes < 340


def test_only_tables_that_the_caller_reads_are_answered(ways: TwoWays) -> None:
    caller = Caller(Grant("one", frozenset((Scope.READ,)), ("float32",)))
    ways.answers.allow(caller.reads_of(ways.directory.reached))
    try:
        for name in ways.tables:
            body = lookup_request(name, [0]).SerializeToString()
            assert (ways.compiled(LOOKUP, body) is not None) == (name == "float32")
        both = [lookup_request("float32", [0]), lookup_request("float16", [0])]
        many = embedding_pb2.LookupManyRequest(lookups=both).SerializeToString()
        assert ways.compiled(LOOKUP_MANY, many) is None
    finally:
        ways.answers.allow(None)


def test_rows_on_a_disk_are_answered_only_by_who_may_wait(ways: TwoWays) -> None:
    body = lookup_request("float32", [0]).SerializeToString()
    patient = Answers(ways.limits, takes_far=True)
    patient.use(ways.directory)
    patient.write_to(np.zeros(1 << 12, np.uint8))
    ways.tables["float32"].is_populated = False
    ways.directory.look()
    try:
        assert ways.compiled(LOOKUP, body) is None
        assert patient.answer(LOOKUP, body) > 0
    finally:
        ways.tables["float32"].is_populated = True
        ways.directory.look()
    assert ways.compiled(LOOKUP, body) is not None


def test_what_is_too_long_for_a_turn_says_how_much_room_it_takes(ways: TwoWays) -> None:
    body = lookup_request("float32", np.arange(100)).SerializeToString()
    expected = ways.general(LOOKUP, body)
    assert isinstance(expected, bytes)
    short = Answers(ways.limits, work_bytes_max=100 * 280 - 1)
    short.use(ways.directory)
    small = Answers(ways.limits)
    small.use(ways.directory)
    out = np.full(1 << 16, 7, np.uint8)
    for answers, room in ((short, out), (small, out[: len(expected) - 1])):
        answers.write_to(room)
        found = answers.answer(LOOKUP, body)
        assert found < NOT_MINE
        assert room_of(found) == len(expected)
        assert (out == 7).all()
    small.write_to(out[: len(expected)])
    assert small.answer(LOOKUP, body) == len(expected)
    assert out[: len(expected)].tobytes() == expected
    assert (out[len(expected) :] == 7).all()


def test_nothing_is_counted_but_what_was_answered(ways: TwoWays) -> None:
    lookups = [lookup_request("float32", [0, 1]), lookup_request("float32", [5])]
    lookups.append(lookup_request("float16", [[1], [2]], dtype="DTYPE_FLOAT16"))
    many = embedding_pb2.LookupManyRequest(lookups=lookups).SerializeToString()
    lookups.append(lookup_request("float32", [-1]))
    wrong = embedding_pb2.LookupManyRequest(lookups=lookups).SerializeToString()
    list(ways.counts.since())
    assert ways.compiled(LOOKUP_MANY, many) is not None
    assert ways.compiled(LOOKUP_MANY, wrong) is None
    assert sorted(ways.counts.since(), key=lambda one: one.name) == [
        Counted("float16", 1, True, 1, 2, 2 * 140, 0, 0),
        Counted("float32", 1, True, 2, 3, 3 * 280, 0, 0),
    ]
    assert list(ways.counts.since()) == []


def test_ids_and_keys_without_a_row_are_counted_apart(ways: TwoWays) -> None:
    list(ways.counts.since())
    ids = lookup_request("float32", [0, -1, 10**9], missing="MISSING_ZERO")
    assert ways.compiled(LOOKUP, ids.SerializeToString()) is not None
    bags = embedding_pb2.LookupBagsRequest(lookup=ids, offsets=lookup_request("", [0]).ids)
    assert ways.compiled(LOOKUP_BAGS, bags.SerializeToString()) is not None
    keys = embedding_pb2.LookupRequest(table="small", missing="MISSING_ZERO")
    keys.keys.integers.CopyFrom(lookup_request("", [10**15, 10**16]).ids)
    assert ways.compiled(LOOKUP, keys.SerializeToString()) is not None
    counted = {one.name: (one.missing_ids, one.missing_keys) for one in ways.counts.since()}
    assert counted == {"float32": (4, 0), "small": (0, 2)}


# The directory


def test_each_of_many_names_finds_its_own_table(tmp_path: Path) -> None:
    names = [f"table-{i:03}" for i in range(300)]
    np.save(tmp_path / "rows.npy", np.arange(300, dtype=np.float32)[:, None])
    tables = {}
    with open(tmp_path / "rows.npy", "rb") as file:
        layout = read_layout(file.fileno(), "rows")
        for name in names:
            tables[name] = Table.map(name, 1, file.fileno(), layout)
    before = Directory(
        LiveTables(None, fixed={name: tables[name] for name in names[::2]}).current()
    )
    view = LiveTables(None, fixed=tables).current()
    directory = Directory(view, before)
    assert directory.is_of(view)
    assert not before.is_of(view)
    answers = Answers(LIMITS, takes_far=True)
    counts = answers.use(directory)
    out = np.zeros(100, np.uint8)
    answers.write_to(out)
    for name in names:
        assert answers.answer(LOOKUP, lookup_request(name, [7]).SerializeToString()) > 0
    for name in ("table-300", "table-00", "table-0000", "able-000"):
        assert answers.answer(LOOKUP, lookup_request(name, [7]).SerializeToString()) == NOT_MINE
    counted = sorted(counts.since(), key=lambda one: one.name)
    assert counted == [Counted(name, 1, True, 1, 1, 4, 0, 0) for name in names]


def test_a_retained_version_is_answered_when_it_is_asked_for(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("words", 20, 4, init="normal"))
    with own_data_dir(tmp_path) as owned:
        owned.change(Publish("words"))
    live = LiveTables(tmp_path)
    live.take([("words", LIVE_VERSION), ("words", 1)])
    answers = Answers(LIMITS, takes_far=True)
    directory = Directory(live.current())
    answers.use(directory)
    out = np.zeros(200, np.uint8)
    answers.write_to(out)
    for asked, answered in ((0, 2), (1, 1), (2, 2)):
        body = lookup_request("words", [3], version=asked).SerializeToString()
        length = answers.answer(LOOKUP, body)
        assert length > 0
        assert embedding_pb2.LookupResponse.FromString(out[:length].tobytes()).version == answered
    body = lookup_request("words", [3], version=3).SerializeToString()
    assert answers.answer(LOOKUP, body) == NOT_MINE


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("filling", [b"\x78\0", b"\x0a\0", b"\x12\0", b"\x0a\x02\x78\0"])
def test_a_body_of_nothing_but_small_fields_is_left_at_once(
    ways: TwoWays, message: int, filling: bytes
) -> None:
    body = filling * (4 << 20)
    begun = time.process_time()
    assert ways.compiled(message, body) is None
    # To read it all takes some 20 ms.
    assert time.process_time() - begun < 0.005
