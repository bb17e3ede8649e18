"""A process' compiled answers: of the tables as they are, for who may read them, and counted."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd_proto.v1 import embedding_pb2
from gatherd_server.access.callers import ANYBODY, Caller, Grant, Scope
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import ServedTables
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.types import DeleteTable, Publish
from gatherd_server.wire.compiled.answers import LOOKUP, LOOKUP_MANY, NOT_MINE
from gatherd_server.wire.compiled.serving import CompiledAnswers, ThreadAnswers
from support.answering import LIMITS
from support.server import wait_until
from support.small_engine import SmallEngine, lookup_request, small_engine
from support.tables import drawn_table, make_data_dir

ONE = lookup_request("words", [1, 2]).SerializeToString()


@pytest.fixture
def small(tmp_path: Path) -> SmallEngine:
    return small_engine(tmp_path)


def answers_of(shared: CompiledAnswers) -> tuple[ThreadAnswers, NDArray[np.uint8]]:
    answers, out = ThreadAnswers(shared, takes_far=True), np.zeros(1 << 16, np.uint8)
    answers.write_to(out)
    return answers, out


def test_a_token_gets_what_it_is_for(small: SmallEngine) -> None:
    answers, _ = answers_of(CompiledAnswers(small.engine))
    read, update = frozenset((Scope.READ,)), frozenset((Scope.UPDATE,))
    nothing = embedding_pb2.LookupManyRequest().SerializeToString()
    for caller, of_words, of_none in (
        (ANYBODY, True, True),
        (Caller(Grant("all", read, ("*",))), True, True),
        (Caller(Grant("words", read, ("w*",))), True, True),
        (Caller(Grant("others", read, ("half", "odd"))), False, True),
        (Caller(Grant("trainer", update, ("*",))), False, False),
    ):
        for _ in range(2):
            assert (answers.answer(LOOKUP, ONE, caller) != NOT_MINE) is of_words
            assert (answers.answer(LOOKUP_MANY, nothing, caller) != NOT_MINE) is of_none


def test_what_each_thread_answered_is_counted_once(small: SmallEngine) -> None:
    telemetry = Telemetry()
    shared = CompiledAnswers(small.engine, telemetry)
    for answers, _ in (answers_of(shared), answers_of(shared)):
        for _ in range(3):
            assert answers.answer(LOOKUP, ONE, ANYBODY) > 0
    for _ in range(2):
        lines = telemetry.document([]).splitlines()
        assert 'gatherd_table_lookups_total{table="words"} 6' in lines
        assert 'gatherd_table_lookup_rows_total{table="words"} 12' in lines
        assert f'gatherd_table_lookup_bytes_total{{table="words"}} {12 * 64 * 4}' in lines


def test_tables_that_change_are_answered_as_they_are_and_let_go(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("words", 20, 4, init="normal"), drawn_table("more", 20, 4))
    telemetry = Telemetry()
    tables = ServedTables({}, {}, tmp_path)
    tables.start()
    shared = CompiledAnswers(Engine(tables, LIMITS), telemetry)
    answers, out = answers_of(shared)
    first = weakref.ref(tables.get("more"))
    with own_data_dir(tmp_path) as owned:
        for version in (1, 2, 3):
            length = answers.answer(LOOKUP, ONE, ANYBODY)
            reply = embedding_pb2.LookupResponse.FromString(out[:length].tobytes())
            assert reply.version == version
            owned.change(Publish("words"))
        more = lookup_request("more", [3]).SerializeToString()
        assert answers.answer(LOOKUP, more, ANYBODY) > 0
        owned.change(DeleteTable("more"))
        # Nobody asks any more: what was dropped is let go all the same.
        telemetry.pulse.beat()
        wait_until(lambda: first() is None, "the deleted table is unmapped")
        assert answers.answer(LOOKUP, more, ANYBODY) == NOT_MINE
    lines = telemetry.document([]).splitlines()
    assert 'gatherd_table_lookups_total{table="words"} 3' in lines
    assert 'gatherd_table_lookups_total{table="more"} 1' in lines
