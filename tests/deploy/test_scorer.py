"""The example model server, against a real gatherd and against none."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import uvloop
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deploy.conftest import DIM, LR, ROWS, Deployed
from gatherd import AsyncClient, Client
from scorer import Settings, create_app

ASKED = {"liked": [1, 2, 3], "candidates": [4, 5]}


@pytest.fixture
def settings(deployed: Deployed) -> Settings:
    return Settings(
        url=deployed.server.http,
        token_file=str(deployed.scorer_token),
        table="words",
        dim=DIM,
        timeout_seconds=10.0,
        fallback=None,
    )


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the application, run by uvicorn in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@dataclass(frozen=True)
class Deaf:
    """A port that takes connections and never answers."""

    url: str


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Deaf(f"http://127.0.0.1:{listener.getsockname()[1]}")


@pytest.fixture
def nobody() -> str:
    """The URL of a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def rows(deployed: Deployed) -> Callable[[], Any]:
    def read() -> Any:
        with Client(f"unix://{deployed.data_dir}/server.sock") as client:
            return client.lookup("words", range(ROWS))

    return read


def expected_scores(table: Any, liked: list[int], candidates: list[int]) -> Any:
    return 1 / (1 + np.exp(-(table[candidates] @ table[liked].mean(axis=0))))


def test_the_client_works_on_the_loop_that_servers_run(settings: Settings) -> None:
    async def dim() -> int:
        async with AsyncClient(settings.url, token_file=settings.token_file) as client:
            return int((await client.lookup("words", [1, 2])).shape[1])

    assert uvloop.run(dim()) == DIM


def test_scores_are_those_of_the_tables_rows(settings: Settings, rows: Callable[[], Any]) -> None:
    with served(create_app(settings)) as scorer:
        answer = scorer.post("/score", json=ASKED).json()
    np.testing.assert_allclose(
        answer["scores"], expected_scores(rows(), ASKED["liked"], ASKED["candidates"]), rtol=1e-5
    )
    assert (answer["fallback"], answer["unknown_ids"]) == (False, 0)


def test_an_id_without_a_row_is_counted_and_scored_by_the_default_vector(
    settings: Settings,
) -> None:
    with served(create_app(settings)) as scorer:
        reply = scorer.post("/score", json={"liked": [1], "candidates": [2, ROWS, ROWS + 1]})
    answer = reply.json()
    assert answer["unknown_ids"] == 2
    assert answer["scores"][1] == answer["scores"][2]


def test_feedback_is_one_step_of_training(settings: Settings, rows: Callable[[], Any]) -> None:
    liked, candidate = [10, 11], 12
    before = rows()
    score = expected_scores(before, liked, [candidate])[0]
    with served(create_app(settings)) as scorer:
        told = {"liked": liked, "candidate": candidate, "clicked": True}
        answer = scorer.post("/feedback", json=told).json()
    assert answer["score"] == pytest.approx(score, rel=1e-5)
    wanted = before.copy()
    wanted[liked] -= LR * (score - 1) * before[candidate] / len(liked)
    wanted[candidate] -= LR * (score - 1) * before[liked].mean(axis=0)
    np.testing.assert_allclose(rows(), wanted, atol=1e-6)
    with Client(settings.url, token_file=settings.token_file) as client:
        assert client.table("words").lsn == answer["lsn"]


def test_without_gatherd_the_fallback_answers(settings: Settings, nobody: str) -> None:
    with served(create_app(replace(settings, url=nobody, timeout_seconds=0.2))) as scorer:
        assert scorer.post("/score", json=ASKED).json() == {
            "scores": [0.5, 0.5],
            "fallback": True,
            "unknown_ids": 0,
        }
        ready = scorer.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["gatherd"] != "ready"


def test_a_gatherd_that_hangs_costs_the_deadline_and_no_more(
    settings: Settings, deaf: Deaf
) -> None:
    with served(create_app(replace(settings, url=deaf.url, timeout_seconds=0.2))) as scorer:
        began = time.monotonic()
        answer = scorer.post("/score", json=ASKED).json()
        elapsed = time.monotonic() - began
    assert answer["fallback"]
    # The machine may be busy; the SDK's own deadline would be ten seconds.
    assert 0.2 <= elapsed < 3


def test_the_fallback_is_the_models_own_vector(
    settings: Settings, nobody: str, tmp_path: Path
) -> None:
    vector = np.full(DIM, 0.5, np.float32)
    np.save(tmp_path / "fallback.npy", vector)
    away = replace(
        settings, url=nobody, timeout_seconds=0.1, fallback=tmp_path / "fallback.npy"
    )  # fmt: skip
    with served(create_app(away)) as scorer:
        answer = scorer.post("/score", json=ASKED).json()
    assert answer["scores"] == pytest.approx([1 / (1 + np.exp(-(vector @ vector)))] * 2)


def test_feedback_is_refused_rather_than_dropped(settings: Settings, nobody: str) -> None:
    with served(create_app(replace(settings, url=nobody, timeout_seconds=0.1))) as scorer:
        told = {"liked": [1], "candidate": 2, "clicked": False}
        reply = scorer.post("/feedback", json=told)
    assert reply.status_code == 503


def test_nothing_is_learned_from_an_id_without_a_row(settings: Settings) -> None:
    with served(create_app(settings)) as scorer:
        told = {"liked": [1], "candidate": ROWS, "clicked": True}
        reply = scorer.post("/feedback", json=told)
    assert (reply.status_code, reply.json()["error"]) == (422, "UNKNOWN_IDS")


def test_a_wrong_token_is_no_reason_to_fall_back(settings: Settings, deployed: Deployed) -> None:
    wrong = replace(settings, token_file=str(deployed.useless_token))
    with served(create_app(wrong)) as scorer:
        for reply in (scorer.post("/score", json=ASKED), scorer.get("/readyz")):
            assert (reply.status_code, reply.json()["error"]) == (503, "PERMISSION_DENIED")
            assert deployed.useless_token.read_text().strip() not in reply.text


def test_a_table_of_another_dim_is_not_ready(settings: Settings) -> None:
    with served(create_app(replace(settings, dim=DIM + 1))) as scorer:
        reply = scorer.get("/readyz")
    assert reply.status_code == 503
    assert f"dim {DIM}" in reply.json()["message"]


@pytest.mark.parametrize(
    "wrong", [{"liked": []}, {"candidates": [-1]}, {"candidates": ["4"] * 10_001}]
)
def test_a_wrong_request_is_the_callers(settings: Settings, wrong: dict[str, Any]) -> None:
    with served(create_app(settings)) as scorer:
        assert scorer.post("/score", json={**ASKED, **wrong}).status_code == 422


def test_spans_continue_the_callers_trace(settings: Settings, nobody: str) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    with served(create_app(settings, provider)) as scorer:
        scorer.post("/score", json=ASKED, headers=headers)
    with served(create_app(replace(settings, url=nobody, timeout_seconds=0.1), provider)) as scorer:
        scorer.post("/score", json=ASKED, headers=headers)
    lookup, request, away, _ = spans.get_finished_spans()
    assert (lookup.name, request.name) == ("gatherd.lookup", "POST /score")
    assert lookup.parent is not None
    assert request.context is not None
    assert lookup.parent.span_id == request.context.span_id
    assert f"{request.context.trace_id:032x}" == trace_id
    assert dict(lookup.attributes or {}) == {
        "gatherd.table": "words",
        "gatherd.ids": 5,
        "gatherd.fallback": False,
    }
    assert dict(away.attributes or {})["gatherd.fallback"] is True
    provider.shutdown()
