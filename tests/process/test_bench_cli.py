"""`gatherd bench` measures a server over any wire, and changes rows of none."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from support.cli import invoke
from support.server import RunningServer

SHORT = ("--seconds", "0.05", "--count", "8")
ROWS, DIM = 50, 4


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "data"
    shape = ("--rows", str(ROWS), "--dim", str(DIM), "--data-dir", folder)
    invoke("create", "items", *shape, "--optimizer", "sgd")
    invoke("create", "words", *shape)
    invoke("create", "none", "--rows", "0", "--dim", "3", "--data-dir", folder)
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[RunningServer]:
    with RunningServer("--data-dir", data_dir) as running:
        yield running


@pytest.mark.parametrize("scheme", ["http", "grpc", "local"])
def test_every_combination_is_measured_over_each_wire(
    server: RunningServer, data_dir: Path, scheme: str
) -> None:
    url = {"http": server.http, "grpc": server.grpc, "local": f"local:{data_dir}"}[scheme]
    cells = json.loads(
        invoke(
            *("bench", url, "--table", "items", "--table", "words", "--json", *SHORT),
            *("--batch", "1", "--batch", "45", "--skew", "uniform", "--skew", "zipf"),
            *("--dtype", "float32", "--dtype", "float16", "--pool", "sum", "--pool", "max"),
        ).stdout
    )
    asked = {(c["table"], c["operation"], c["batch"], c["skew"], c["dtype"]) for c in cells}
    assert asked == {
        (table, operation, batch, skew, dtype)
        for table in ("items", "words")
        for operation in ("lookup", "bags sum", "bags max")
        for batch in (1, 45)
        for skew in ("uniform", "zipf")
        for dtype in ("float32", "float16")
    }
    assert len(cells) == len(asked)
    for cell in cells:
        assert 1 <= cell["requests"] <= 8
        assert 0 < cell["p50"] <= cell["p95"] <= cell["p99"]
        assert cell["rows_per_second"] > 0


def test_the_table_for_people_has_a_line_a_cell(server: RunningServer) -> None:
    lines = invoke("bench", server.http, "--batch", "2", *SHORT).stdout.splitlines()
    assert lines[0].split()[:6] == ["TABLE", "OPERATION", "BATCH", "SKEW", "DTYPE", "REQUESTS"]
    # Every table that has rows, each by what is measured unless told otherwise.
    assert [line.split()[:5] for line in lines[1:]] == [
        ["items", "lookup", "2", "uniform", "float32"],
        ["words", "lookup", "2", "uniform", "float32"],
    ]


def test_updates_are_sent_only_when_asked_and_only_to_tables_that_take_them(
    server: RunningServer,
) -> None:
    with Client(server.http) as client:
        rows, lsn = client.lookup("items", np.arange(ROWS)), client.table("items").lsn
        invoke("bench", server.http, "--batch", "3", *SHORT)
        assert client.table("items").lsn == lsn
        asked = ("--updates", "--json", "--batch", "3", "--threads", "3", *SHORT)
        cells = json.loads(invoke("bench", server.http, *asked).stdout)
        pushes = [cell for cell in cells if cell["operation"] == "scatter-add"]
        assert [cell["table"] for cell in pushes] == ["items"]
        # Those that warm up are pushes, too.
        assert client.table("items").lsn == lsn + pushes[0]["requests"] + 3
        np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), rows)


def test_count_bounds_the_requests_of_all_threads_together(server: RunningServer) -> None:
    asked = ("--count", "7", "--seconds", "30", "--threads", "3", "--batch", "1", "--json")
    cells = json.loads(invoke("bench", server.http, "--table", "words", *asked).stdout)
    assert [cell["requests"] for cell in cells] == [7]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table", "words", "--updates"), "none of words takes updates; `gatherd set-optimizer"),
        (("--table", "none"), "table 'none' has no rows to look up"),
        (("--table", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    server: RunningServer, arguments: tuple[str, ...], said: str
) -> None:
    done = invoke("bench", server.http, *arguments, *SHORT, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert not done.stdout


def test_a_server_that_is_not_there_is_told_of() -> None:
    done = invoke("bench", "http://127.0.0.1:9", *SHORT, check=False)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr


def test_an_error_of_one_thread_ends_all(data_dir: Path) -> None:
    # Two ids over the limit in a bag that can't be cut, and a time that nobody waits for.
    rows = data_dir / "tables" / "words" / "v000001" / "weights.npy"
    with RunningServer(f"words={rows}", "--ids-max", "8") as server:
        asked = ("--pool", "sum", "--batch", "10", "--bag", "10", "--threads", "3")
        done = invoke("bench", server.http, *asked, "--seconds", "60", "--count", "9", check=False)
    assert done.returncode == 1
    assert "ids" in done.stderr
