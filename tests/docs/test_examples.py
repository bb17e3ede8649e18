"""The programs in docs/examples do what their texts say, against one server."""

import asyncio
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from gatherd import Client
from support.cli import invoke
from support.documents import DOCS
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

EXAMPLES = DOCS / "examples"
WORDS = {
    "red": [1.0, 0.0, 0.1, 0.0],
    "blue": [0.9, 0.1, 0.0, 0.0],
    "car": [0.0, 1.0, 0.0, 0.1],
    "automobile": [0.1, 0.9, 0.0, 0.0],
    "soup": [0.0, 0.0, 0.0, 1.0],
}
Run = Callable[..., str]


@dataclass(frozen=True)
class Served:
    url: str
    data_dir: Path


def text_of(words: dict[str, list[float]]) -> str:
    return "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in words.items())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("examples")
    tables = [
        drawn_table(
            name, rows, 8, init="normal", seed=seed, optimizer="adagrad", options={"lr": 0.1}
        )
        for seed, (name, rows) in enumerate({"users": 500, "items": 200}.items())
    ]
    make_data_dir(folder / "data", *tables)
    (folder / "words.txt").write_text(text_of(WORDS))
    invoke("import", "words", folder / "words.txt", "--data-dir", folder / "data")
    with RunningServer("--data-dir", folder / "data") as server:
        yield Served(server.http, folder / "data")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as a program, and returns what it prints."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested_and_listed() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"blue_green.py", "model_server.py", "sentence_pooling.py", "trainer.py"}
    pages = "".join(path.read_text() for path in (DOCS / "how-to").glob("*.md"))
    for name in names:
        assert f'--8<-- "examples/{name}"' in pages, name


def ranked(*asked: dict[str, Any]) -> list[httpx.Response]:
    """The model server's answers, one after the other."""
    app: FastAPI = runpy.run_path(str(EXAMPLES / "model_server.py"))["app"]

    async def answers() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://ranker.test") as client,
        ):
            return [await client.post("/rank", json=body) for body in asked]

    return asyncio.run(answers())


def test_the_model_server_ranks_by_the_tables_rows(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHERD_URL", served.url)
    with Client(served.url) as client:
        user, items = client.lookup("users", [7])[0], client.lookup("items", [3, 3, 9])
    answer, refused = ranked({"user": 7, "items": [3, 3, 9]}, {"user": 500, "items": [3]})
    np.testing.assert_allclose(answer.json()["scores"], items @ user, rtol=1e-5)
    assert refused.status_code == 422
    assert "500" in refused.json()["error"]


def test_the_model_server_says_that_gatherd_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATHERD_URL", "http://127.0.0.1:9")
    (answer,) = ranked({"user": 7, "items": [3]})
    assert answer.status_code == 503


def test_the_trainer_learns_and_repeats_no_step(served: Served, run: Run) -> None:
    with Client(served.url) as client:
        printed = run("trainer.py", "--url", served.url, "--steps", 200)
        errors = [float(line.split()[-1]) for line in printed.splitlines()]
        assert errors[-1] < 0.5 * errors[0]
        trained = client.lookup("items", range(200))
        lsn = client.table("items").lsn
        # As after a crash: the same steps, from other rows.
        run("trainer.py", "--url", served.url, "--steps", 3)
        np.testing.assert_array_equal(client.lookup("items", range(200)), trained)
        assert client.table("items").lsn == lsn


def test_sentences_are_compared_by_the_means_of_their_words(served: Served, run: Run) -> None:
    printed = run(
        "sentence_pooling.py", "--url", served.url,
        "A red car", "The blue automobile", "soup", "nothing known",
    )  # fmt: skip

    def mean(*words: str) -> NDArray[Any]:
        vector = np.mean([WORDS[word] for word in words], axis=0)
        return np.asarray(vector / np.linalg.norm(vector))

    alike = mean("red", "car") @ mean("blue", "automobile")
    other = mean("red", "car") @ mean("soup")
    assert printed.splitlines() == [
        "'A red car': no vector for a",
        "'The blue automobile': no vector for the",
        "'nothing known': no vector for nothing, known",
        f"{alike:+.3f}  'A red car' and 'The blue automobile'",
        f"{other:+.3f}  'A red car' and 'soup'",
        "+0.000  'A red car' and 'nothing known'",
    ]


@pytest.mark.parametrize(("turned", "live"), [(False, 2), (True, 1)])
def test_green_stays_live_only_if_it_is_like_blue(
    served: Served,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    turned: bool,
    live: int,
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    table = f"words-{live}"
    (tmp_path / "blue.txt").write_text(text_of(WORDS))
    green = {word: [-x if turned else 1.1 * x for x in row] for word, row in WORDS.items()}
    (tmp_path / "green.txt").write_text(text_of(green))
    (tmp_path / "probes.txt").write_text("red\ncar\n")
    invoke("import", table, tmp_path / "blue.txt", "--data-dir", served.data_dir)
    arguments = (
        table, tmp_path / "green.txt", "--data-dir", served.data_dir, "--url", served.url,
        "--probes", tmp_path / "probes.txt",
    )  # fmt: skip
    if turned:
        with pytest.raises(SystemExit) as ended:
            run("blue_green.py", *arguments)
        assert ended.value.code == 1
    else:
        assert "version 2 stays live" in run("blue_green.py", *arguments)
    with Client(served.url) as client:
        assert client.table(table).version == live
        expected = np.array(WORDS["red"]) * (1 if turned else 1.1)
        np.testing.assert_allclose(client.lookup(table, keys=["red"])[0], expected, rtol=1e-6)
