"""`gatherd bench` measures a server over any wire, and changes rows of none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    invoke("create", "words", *shape, "--frozen")
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


@pytest.fixture(scope="module")
def keyed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables by key: one of strings, whose steps of zeros change nothing, and one of integers."""
    folder = tmp_path_factory.mktemp("keyed")
    np.save(folder / "rows.npy", np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM))
    np.save(folder / "shops.npy", np.arange(ROWS) * 7 + 2**40)
    (folder / "users.txt").write_text("".join(f"user:{i}\n" for i in range(ROWS)))
    for name, keys, optimizer in (
        ("users", "users.txt", "adagrad"),
        ("shops", "shops.npy", "adam"),
    ):
        invoke(
            *("import", name, folder / "rows.npy", "--keys", folder / keys),
            *("--optimizer", optimizer, "--data-dir", folder / "data"),
        )
    return folder / "data"


@pytest.fixture(scope="module")
def keyed(keyed_dir: Path) -> Iterator[RunningServer]:
    with RunningServer("--data-dir", keyed_dir) as running:
        yield running


def measured(url: str, *options: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(
        invoke("bench", url, "--json", *options, *SHORT).stdout
    )
    return cells


@pytest.mark.parametrize("scheme", ["http", "grpc", "local"])
def test_tables_are_asked_together_and_by_key(
    keyed: RunningServer, keyed_dir: Path, scheme: str
) -> None:
    url = {"http": keyed.http, "grpc": keyed.grpc, "local": f"local:{keyed_dir}"}[scheme]
    shape = ("--tables", "1", "--tables", "2", "--batch", "3", "--pool", "mean", "--bag", "2")
    by_id = measured(url, *shape)
    by_key = measured(url, *shape, "--keys", "--missing", "zero")
    asked = [(cell["table"], cell["operation"], cell["batch"]) for cell in by_id + by_key]
    assert asked == [
        (table, operation, 3)
        for operations in (
            ("lookup", "bags mean"),
            ("lookup by key, zero", "bags mean by key, zero"),
        )
        for table in ("shops", "users", "2 tables")
        for operation in operations
    ]


def test_bags_are_counted_apart_from_ids(server: RunningServer) -> None:
    shape = ("--batch", "1", "--batch", "6", "--pool", "sum", "--bag", "3", "--bags", "2")
    cells = measured(server.http, "--table", "words", *shape, "--busy-poll-us", "0")
    assert [(cell["operation"], cell["batch"]) for cell in cells] == [
        ("lookup", 1),
        ("lookup", 6),
        ("bags sum", 6),
    ]


def test_pushes_are_each_done_and_change_no_row(keyed: RunningServer) -> None:
    with Client(keyed.http) as client:
        rows, lsn = client.lookup("users", np.arange(ROWS)), client.table("users").lsn
        pushes = ("--push", "scatter-add", "--push", "apply-gradients", "--keys", "--batch", "3")
        cells = measured(keyed.http, "--table", "users", *pushes)
        requests = {cell["operation"]: cell["requests"] for cell in cells}
        assert list(requests) == ["lookup by key", "scatter-add by key", "apply-gradients by key"]
        # Those that warm up are pushes, too.
        done = sum(requests.values()) - requests["lookup by key"] + 2 * 3
        assert client.table("users").lsn == lsn + done
        together = ("--tables", "2", "--push", "scatter-add", "--batch", "3")
        cells = measured(keyed.http, *together)
        assert [(cell["table"], cell["operation"]) for cell in cells] == [
            ("2 tables", "lookup"),
            ("2 tables", "scatter-add"),
        ]
        assert client.table("users").lsn == lsn + done + cells[1]["requests"] + 3
        np.testing.assert_array_equal(client.lookup("users", np.arange(ROWS)), rows)


def test_steps_that_would_move_rows_at_gradients_of_zeros_are_refused(keyed: RunningServer) -> None:
    asked = ("--table", "shops", "--push", "apply-gradients")
    done = invoke("bench", keyed.http, *asked, *SHORT, check=False)
    assert done.returncode > 1
    assert "adam moves rows of 'shops' also at gradients of zeros" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table", "words", "--updates"), "none of words takes updates; `gatherd set-optimizer"),
        (("--table", "none"), "table 'none' has no rows to look up"),
        (("--table", "nowhere"), "nowhere"),
        (("--table", "words", "--keys"), "table 'words' has no keys"),
        (("--keys",), "no table has keys"),
        (("--tables", "3"), "--tables 3, and there are 2 to look up"),
        (("--bags", "2"), "--bags is for requests that pool; give --pool too"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    server: RunningServer, arguments: tuple[str, ...], said: str
) -> None:
    done = invoke("bench", server.http, *arguments, *SHORT, check=False)
    assert done.returncode > 1
    assert said in done.stderr
    assert not done.stdout


def test_a_server_that_is_not_there_is_told_of() -> None:
    done = invoke("bench", "http://127.0.0.1:9", *SHORT, check=False)
    assert done.returncode > 1
    assert "127.0.0.1:9" in done.stderr


def test_an_error_of_one_thread_ends_all(data_dir: Path) -> None:
    # Two ids over the limit in a bag that can't be cut, and a time that nobody waits for.
    rows = data_dir / "tables" / "words" / "v000001" / "weights.npy"
    with RunningServer(f"words={rows}", "--ids-max", "8") as server:
        asked = ("--pool", "sum", "--batch", "10", "--bag", "10", "--threads", "3")
        done = invoke("bench", server.http, *asked, "--seconds", "60", "--count", "9", check=False)
    assert done.returncode > 1
    assert "ids" in done.stderr
