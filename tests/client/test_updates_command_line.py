"""`gatherd scatter-add` and the other commands that ask a server for a change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result

from client.clients import ITEMS, WORDS, word
from client.fake_updates import UpdatedService
from client.fakes import connect_server
from gatherd_server.cli.main import cli


@pytest.fixture
def service() -> UpdatedService:
    keys: dict[str, list[Any]] = {
        "words": [word(row).encode() for row in range(500)],
        "items": [row * 1000 - 7 for row in range(40)],
    }
    return UpdatedService({"words": WORDS.copy(), "items": ITEMS.copy()}, keys)


@pytest.fixture
def url(service: UpdatedService) -> Iterator[str]:
    with connect_server(service) as url:
        yield url


def run(*args: object, status: int = 0, **options: Any) -> Result:
    done = CliRunner().invoke(cli, [str(arg) for arg in args], **options)
    assert done.exit_code == status, done.output
    return done


@pytest.mark.parametrize("command", ["scatter-add", "apply-gradients", "assign"])
def test_updates_by_id_and_json(url: str, service: UpdatedService, command: str) -> None:
    done = run(command, "items", 4, 20, "--values", "[[1, 0, 2.5], [0, 1, 0]]", "--url", url)
    assert done.output == "items: version 7, LSN 101\n"
    values = np.array([[1, 0, 2.5], [0, 1, 0]], np.float32)
    expected = {
        "scatter-add": ITEMS[[4, 20]] + values,
        "apply-gradients": ITEMS[[4, 20]] - np.float32(0.5) * values,
        "assign": values,
    }[command]
    np.testing.assert_array_equal(service.tables["items"][[4, 20]], expected)


def test_one_id_takes_a_flat_list_and_every_option_arrives(
    url: str, service: UpdatedService
) -> None:
    run("apply-gradients", "items", 4, "--values", "[1, 2, 3]", "--lr", "0.25", "--if-version", 7,
        "--idempotency-key", "step-1", "--url", url)  # fmt: skip
    (push,) = service.pushes
    assert push.idempotency_key == "step-1"
    assert push.updates[0].learning_rate == 0.25
    assert push.updates[0].if_version == 7


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", ml_dtypes.bfloat16])
def test_updates_from_files(url: str, service: UpdatedService, tmp_path: Path, dtype: Any) -> None:
    ids, values = np.array([[4, 5], [6, 4]]), np.arange(12).reshape(2, 2, 3).astype(dtype)
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "values.npy", values)
    run("assign", "items", "--ids", tmp_path / "ids.npy", "--values", tmp_path / "values.npy",
        "--url", url)  # fmt: skip
    expected = values.astype(np.float32)
    np.testing.assert_array_equal(
        service.tables["items"][[4, 5, 6]], [expected[1, 1], expected[0, 1], expected[1, 0]]
    )


def test_updates_by_key(url: str, service: UpdatedService, tmp_path: Path) -> None:
    run("assign", "words", word(3), "--by-key", "--values", json.dumps([1] * 8), "--url", url)
    run("assign", "items", "-7", "993", "--by-key", "--values", "[[1,1,1],[2,2,2]]", "--url", url)
    np.save(tmp_path / "keys.npy", np.array([word(5)]))
    run("assign", "words", "--ids", tmp_path / "keys.npy", "--by-key",
        "--values", json.dumps([[2] * 8]), "--url", url)  # fmt: skip
    np.testing.assert_array_equal(service.tables["words"][[3, 5]], [[1] * 8, [2] * 8])
    np.testing.assert_array_equal(service.tables["items"][[0, 1]], [[1] * 3, [2] * 3])


def test_what_is_wrong_is_told_in_a_line(url: str, service: UpdatedService, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for args, said in (
        (["items", "--values", "[[1,2,3]]"], "give the ids"),
        (["items", 1, "--ids", tmp_path / "text.npy", "--values", "[1,2,3]"], "give the ids"),
        (["items", "x", "--values", "[1,2,3]"], "isn't an id, which is an integer from 0"),
        (["items", 1, "--values", "[1,2"], "can't be read"),
        (["items", 1, 2, "--values", "[[1,2],[3]]"], "can't be read"),
        (["items", 1, "--values", tmp_path / "none.npy"], "No such file"),
        (["items", 1, "--values", tmp_path / "text.npy"], "isn't a .npy file"),
        (["items", 1, "--values", tmp_path / "objects.npy"], "isn't a .npy file"),
        (["items", 1, "--values", "[NaN, 1, 2]"], "rows[0][0]=nan"),
    ):
        status = 6 if args[-1] in (tmp_path / "none.npy", *tmp_path.glob("*.npy")) else 2
        done = run("assign", *args, "--url", url, status=status)
        assert said in done.output
        assert len(done.output.splitlines()) == 1
    assert not service.pushes


def test_versions_names_the_live_one(url: str) -> None:
    assert run("versions", "items", "--url", url).output == "5\n7  (live)\n"
    document = json.loads(run("versions", "items", "--url", url, "--json").output)
    assert document == {"table": "items", "versions": [5, 7], "live": 7}


def test_delete_asks_first(url: str, service: UpdatedService) -> None:
    run("delete", "items", "--url", url, input="n\n", status=1)
    assert not service.changes
    assert run("delete", "items", "--url", url, "--yes").output == "items: deleted, LSN 101\n"
    run("delete", "items", "--url", url, input="y\n")
    assert [change.table for change in service.changes] == ["items", "items"]


def test_a_data_dir_without_a_server_takes_no_update(tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("create", "items", "--rows", "3", "--dim", "1", "--data-dir", data)
    done = run("assign", "items", 1, "--values", "[1]", "--url", f"local:{data}", status=3)
    assert f"gatherd serve --data-dir {data}" in done.output
