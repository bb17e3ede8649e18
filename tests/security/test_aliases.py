"""A token needs permission for an alias and for the table that it points to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatherd.errors import PermissionDenied, TableNotFound, Unavailable
from gatherd.store.query import KeyQuery, NeighborsQuery
from gatherd.store.table import Preload
from gatherd_server.access.callers import Caller, Grant, GuardedEngine, Scope
from gatherd_server.data_dir.changes import Changes
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import open_sources
from gatherd_server.link.link import DirectLink
from gatherd_server.storage.files import Files
from gatherd_server.types import (
    CloneTable,
    DeleteAlias,
    DeleteTable,
    Lookup,
    Publish,
    Push,
    RenameTable,
    ReplaceTable,
    SetAlias,
    TableChange,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.wire.compiled.answers import LOOKUP, NOT_MINE
from gatherd_server.wire.compiled.serving import CompiledAnswers, ThreadAnswers
from gatherd_server.writer.writer import Writer
from support.small_engine import LIMITS, lookup_request
from support.tables import drawn_table, make_data_dir

IDS = np.array([0])
ZEROS = np.zeros((1, 2), np.float32)


@dataclass(frozen=True)
class Guarding:
    """An engine with tables public and secret; a_public and a_secret are their aliases."""

    engine: Engine

    def caller(self, *patterns: str) -> Caller:
        return Caller(Grant("t", frozenset((Scope.READ, Scope.UPDATE, Scope.ADMIN)), patterns))

    def of(self, *patterns: str) -> GuardedEngine:
        guarded = self.caller(*patterns).guard(self.engine)
        assert isinstance(guarded, GuardedEngine)
        return guarded

    def change(self, change: TableChange) -> None:
        self.engine.change(change).result(30)


@pytest.fixture
def guarding(tmp_path: Path) -> Iterator[Guarding]:
    data = tmp_path / "data"
    make_data_dir(data, *(drawn_table(name, 3, 2) for name in ("public", "secret")))
    limits = WriterLimits()
    writer = Writer(data, Files(), limits)
    changes = Changes(writer, limits)
    link = DirectLink(writer, changes)
    engine = Engine(open_sources({}, data, Preload.NONE), LIMITS, link)
    made = Guarding(engine)
    made.change(SetAlias("a_public", "public"))
    made.change(SetAlias("a_secret", "secret"))
    yield made
    changes.close()
    writer.close()


def push(table: str) -> Push:
    return Push(UpdateOp.SCATTER_ADD, (TableUpdate(table, IDS, ZEROS),))


READS: dict[str, Callable[[GuardedEngine, str], Any]] = {
    "lookup": lambda engine, name: engine.lookup(Lookup(name, IDS)),
    "lookup_many": lambda engine, name: engine.lookup_many([Lookup(name, IDS)]),
    "keys_of": lambda engine, name: engine.keys_of(name, IDS),
    "ids_of": lambda engine, name: engine.ids_of(name, IDS),
    "prepare_keys": lambda engine, name: engine.prepare_keys(name, KeyQuery()),
    "prepare_neighbors": lambda engine, name: engine.prepare_neighbors(
        name, NeighborsQuery(IDS, None)
    ),
    "table": lambda engine, name: engine.table(name),
    "key_kind": lambda engine, name: engine.key_kind(name),
    "push": lambda engine, name: engine.push(push(name)).result(30),
}
CHANGES: dict[str, Callable[[str], TableChange]] = {
    "publish": Publish,
    "clone": lambda name: CloneTable("a_new", name),
    "replace": lambda name: ReplaceTable(name, "a_public"),
    "replace by": lambda name: ReplaceTable("a_public", name),
    "alias to": lambda name: SetAlias("a_new", name),
    "unalias": DeleteAlias,
}


@pytest.mark.parametrize("call", READS)
def test_an_alias_widens_no_tokens_reach(guarding: Guarding, call: str) -> None:
    only_alias, only_table = guarding.of("a_*"), guarding.of("secret")
    with pytest.raises(PermissionDenied) as denied:
        READS[call](only_alias, "a_secret")
    assert "secret'" not in denied.value.message.replace("'a_secret'", "")
    assert "secret" not in denied.value.metadata.values()
    with pytest.raises(PermissionDenied, match="isn't for table 'a_secret'"):
        READS[call](only_table, "a_secret")


@pytest.mark.parametrize("call", ["lookup", "lookup_many", "table", "key_kind", "push"])
def test_a_token_for_both_goes_by_the_alias(guarding: Guarding, call: str) -> None:
    READS[call](guarding.of("a_secret", "secret"), "a_secret")


@pytest.mark.parametrize("call", CHANGES)
def test_changes_by_an_alias_take_both_too(guarding: Guarding, call: str) -> None:
    before = guarding.engine.view().catalog
    change = CHANGES[call]("a_secret")
    with pytest.raises(PermissionDenied):
        guarding.of("a_*", "public").change(change)
    assert guarding.engine.view().catalog == before


def test_names_that_a_token_isnt_for_cant_be_taken_or_given_away(guarding: Guarding) -> None:
    admin = guarding.of("a_*", "public")
    for change in (
        SetAlias("other", "public"),
        SetAlias("a_new", "secret"),
        RenameTable("public", "other"),
        RenameTable("secret", "a_new"),
        CloneTable("other", "public"),
        CloneTable("a_new", "secret"),
        ReplaceTable("public", "secret"),
    ):
        with pytest.raises(PermissionDenied):
            admin.change(change)
    # An alias that somebody else set isn't removed with the table.
    guarding.change(SetAlias("theirs", "public"))
    with pytest.raises(PermissionDenied):
        admin.change(DeleteTable("public", force=True))
    assert guarding.engine.table("theirs").alias_of == "public"


def test_a_listing_has_the_callers_aliases_alone(guarding: Guarding) -> None:
    guarding.change(SetAlias("theirs", "public"))
    (public,) = guarding.of("public", "a_*").tables()
    assert (public.name, public.aliases) == ("public", ("a_public",))
    assert guarding.of("public").table("public").aliases == ()


def test_the_compiled_answer_is_held_to_both(guarding: Guarding) -> None:
    answers = ThreadAnswers(CompiledAnswers(guarding.engine), takes_far=True)
    answers.write_to(np.empty(4096, np.uint8))
    guarding.engine.lookup(Lookup("a_secret", IDS))
    request = lookup_request("a_secret", [0]).SerializeToString()
    for patterns, is_mine in ((("a_*",), False), (("secret",), False), (("*",), True)):
        caller = guarding.caller(*patterns)
        assert (answers.answer(LOOKUP, request, caller) != NOT_MINE) == is_mine, patterns
    guarding.change(SetAlias("a_public", "secret"))
    request = lookup_request("a_public", [0]).SerializeToString()
    assert answers.answer(LOOKUP, request, guarding.caller("a_*", "public")) == NOT_MINE


def test_a_push_isnt_made_to_a_table_that_the_alias_is_switched_to_on_its_way(
    guarding: Guarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alias is switched after the token was found to be for the table that it meant."""
    pushes = guarding.engine.push

    def switched(push: Push) -> Any:
        guarding.change(SetAlias("a_public", "secret"))
        return pushes(push)

    monkeypatch.setattr(guarding.engine, "push", switched)
    engine = guarding.of("a_public", "public")
    with pytest.raises(Unavailable, match="was switched") as refused:
        engine.push(push("a_public")).result(30)
    assert refused.value.retry_after_seconds
    with pytest.raises(PermissionDenied):
        engine.push(push("a_public"))


def test_a_switch_to_a_table_that_is_gone_is_refused(guarding: Guarding) -> None:
    with pytest.raises(TableNotFound) as missing:
        guarding.of("a_*", "nothing").change(SetAlias("a_new", "nothing")).result(30)
    assert "public" not in missing.value.message.replace("a_public", "")
