"""set-optimizer: options change in place, at one LSN; another kind of optimizer is a copy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import InvalidArgument, NoOptimizer, VersionMismatch
from gatherd.store.catalog import read_catalog
from gatherd_proto.v1 import table_pb2
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import (
    OptimizerSpec,
    Publish,
    Rollback,
    SetOptimizer,
)
from support.cli import invoke
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

ONE = np.ones((1, 2), np.float32)
ROW = np.array([1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    data_dir = tmp_path_factory.mktemp("optimizers") / "data"
    sgd = drawn_table("sgd", 3, 2, options={"lr": 0.5})
    adagrad = drawn_table("adagrad", 3, 2, optimizer="adagrad", options={"lr": 0.5, "eps": 1e-6})
    plain, frozen = (
        drawn_table("plain", 3, 2, optimizer="none"),
        drawn_table("frozen", 3, 2, optimizer=None),
    )
    make_data_dir(data_dir, sgd, adagrad, plain, frozen)
    with RunningServer("--data-dir", data_dir, "--workers", "2") as running:
        yield running, data_dir


def change_rest(
    base: str, data_dir: Path, table: str, optimizer: dict[str, Any]
) -> tuple[int, int]:
    reply = httpx.post(f"{base}/v1/tables/{table}:setOptimizer", json={"optimizer": optimizer})
    assert reply.status_code == 200, reply.text
    return reply.json()["version"], reply.json()["lsn"]


def change_connect(
    base: str, data_dir: Path, table: str, optimizer: dict[str, Any]
) -> tuple[int, int]:
    options = {name: value for name, value in optimizer.items() if name != "name"}
    given = table_pb2.Optimizer(name=optimizer.get("name", ""), options=options)
    reply = httpx.post(
        f"{base}/gatherd.v1.TableService/SetOptimizer",
        content=table_pb2.SetOptimizerRequest(table=table, optimizer=given).SerializeToString(),
        headers={"Content-Type": "application/proto", "Connect-Protocol-Version": "1"},
    )
    assert reply.status_code == 200, reply.text
    done = table_pb2.ChangeResponse.FromString(reply.content)
    return done.version, done.lsn


def change_sdk(url: str, data_dir: Path, table: str, optimizer: dict[str, Any]) -> tuple[int, int]:
    with Client(url) as client:
        options = {name: value for name, value in optimizer.items() if name != "name"}
        done = client.set_optimizer(table, optimizer.get("name"), **options)
    return done.version, done.lsn


@pytest.mark.parametrize("way", ["rest", "connect", "http", "grpc", "local"])
def test_a_rate_changes_in_place_on_every_surface(
    server: tuple[RunningServer, Path], way: str
) -> None:
    running, data_dir = server
    url = {"grpc": running.grpc, "local": f"local:{data_dir}"}.get(way, running.http)
    change = {"rest": change_rest, "connect": change_connect}.get(way, change_sdk)
    with Client(running.http) as client:
        for lr in (0.25, 0.125):
            before = client.table("sgd")
            version, lsn = change(url, data_dir, "sgd", {"lr": lr})
            assert (version, lsn) == (before.version, before.lsn + 1)
            was = client.lookup("sgd", ROW)
            client.apply_gradients("sgd", ROW, ONE)
            np.testing.assert_array_equal(client.lookup("sgd", ROW), was - np.float32(lr))
            for other in (running.http, running.grpc, f"local:{data_dir}"):
                with Client(other) as reader:
                    info = reader.table("sgd")
                    assert (info.optimizer or {})["lr"] == lr
                    assert info.versions == before.versions


def test_options_that_are_not_given_stay_without_a_name_and_are_defaults_with_one(
    server: tuple[RunningServer, Path],
) -> None:
    with Client(server[0].http) as client:
        version = client.table("adagrad").version
        client.apply_gradients("adagrad", ROW, ONE)
        state = next(client.rows("adagrad", slots=True)).slots["sum"]
        client.set_optimizer("adagrad", lr=0.25, clip_value=2.0)
        optimizer = client.table("adagrad").optimizer or {}
        assert (optimizer["lr"], optimizer["eps"], optimizer["clip_value"]) == (0.25, 1e-6, 2.0)
        client.set_optimizer("adagrad", "adagrad", lr=0.125)
        optimizer = client.table("adagrad").optimizer or {}
        assert (optimizer["lr"], optimizer["eps"]) == (0.125, 1e-10)
        assert "clip_value" not in optimizer
        assert client.table("adagrad").version == version
        after = next(client.rows("adagrad", slots=True)).slots["sum"]
        np.testing.assert_array_equal(after, state)


def test_a_table_without_an_optimizer_gets_one_and_a_frozen_one_thaws(
    server: tuple[RunningServer, Path],
) -> None:
    with Client(server[0].http) as client:
        with pytest.raises(InvalidArgument, match="has no optimizer whose options"):
            client.set_optimizer("plain", lr=0.5)
        assert client.set_optimizer("plain", "sgd", lr=1.0).version == 1
        client.apply_gradients("plain", ROW, ONE)
        np.testing.assert_array_equal(client.lookup("plain", ROW), -ONE)
        assert client.set_optimizer("plain", "none").version == 1
        with pytest.raises(NoOptimizer):
            client.apply_gradients("plain", ROW, ONE)
        # Readers of a frozen table check no counters, so it thaws as a copy.
        assert client.set_optimizer("frozen", "none").version == 2
        client.assign("frozen", ROW, ONE)
        np.testing.assert_array_equal(client.lookup("frozen", ROW), ONE)


def test_a_wrong_change_leaves_everything_as_it_was(server: tuple[RunningServer, Path]) -> None:
    with Client(server[0].http) as client:
        before = client.table("sgd")
        wrong: tuple[tuple[dict[str, Any], str], ...] = (
            ({"lr": -1.0}, "lr can't be -1"),
            ({"lr": float("nan")}, "must be finite"),
            ({"beta1": 0.5}, "sgd has no option 'beta1'"),
            ({"padding_id": 3.0}, "padding_id 3 is out of range"),
        )
        for options, says in wrong:
            with pytest.raises(InvalidArgument, match=says):
                client.set_optimizer("sgd", **options)
        with pytest.raises(InvalidArgument, match="name an optimizer, or give options"):
            client.set_optimizer("sgd")
        with pytest.raises(VersionMismatch):
            client.set_optimizer("sgd", lr=0.5, if_version=9)
        after = client.table("sgd")
        assert (after.optimizer, after.version) == (before.optimizer, before.version)


def test_the_command_says_what_becomes_of_the_state(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("t", 3, 2, optimizer="adagrad"))
    place = ("--data-dir", tmp_path)
    assert invoke("set-optimizer", "t", "--lr", "0.25", *place).stdout == (
        "t: version 1 is live, LSN 2\n"
    )
    said = invoke("set-optimizer", "t", "adam", *place).stdout
    assert said.splitlines() == [
        "t: version 2 is live, LSN 3",
        "  the optimizer's state begins anew; version 1 keeps the one before",
    ]
    refused = invoke("set-optimizer", "t", *place, check=False)
    assert refused.returncode > 1
    assert "name an OPTIMIZER, or give options" in refused.stderr
    listed = json.loads(invoke("tables", "--json", *place).stdout)
    assert listed[0]["optimizer"]["name"] == "adam"


# What is kept of it


def test_it_lasts_over_restarts_copies_rollbacks_and_restores(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_data_dir(data, drawn_table("t", 3, 2, options={"lr": 0.5}))
    with own_data_dir(data) as owned:
        owned.change(SetOptimizer("t", OptimizerSpec("", {"lr": 0.25})))
    with own_data_dir(data) as owned:
        assert rate(data) == 0.25
        owned.change(Publish("t"))  # the copy has the rate of now
        assert rate(data) == 0.25
        owned.change(SetOptimizer("t", OptimizerSpec("", {"lr": 0.125})))
        assert rate(data) == 0.125
        owned.change(Rollback("t"))
        assert rate(data) == 0.25
        owned.snapshot(tmp_path / "snapshots", "one")
    with Client(f"local:{tmp_path / 'snapshots' / 'one'}") as client:
        assert (client.table("t").optimizer or {})["lr"] == 0.25
    invoke("restore", tmp_path / "snapshots" / "one", "--table", "t", "--data-dir", data)
    assert rate(data) == 0.25
    assert invoke("verify", "--data-dir", data).returncode == 0
    entry = read_catalog(data).tables["t"]
    assert {version for version, _ in entry.optimizers} <= {*entry.versions}


def rate(data_dir: Path) -> float:
    with Client(f"local:{data_dir}") as client:
        return float((client.table("t").optimizer or {})["lr"])
