"""An example to copy: a model server that keeps its embeddings in gatherd.

`POST /score` says how well each candidate fits the items that a user liked before: the logistic of
the dot product of the candidate's vector with the mean of the liked ones'. `POST /feedback` takes
one step of training from a click. The model is two lines; the rest is what a server needs:

- one lookup for all ids of a request, with a deadline of its own, far below the request's;
- a fallback: without gatherd every id has the same vector, and the caller gets scores in time,
  marked `"fallback": true`. An id without a row gets the table's default vector, and is counted;
- an error in the set-up (a token, a table) isn't hidden behind the fallback: it is 503, and /readyz
  says so;
- an update is acknowledged when gatherd has it, or refused with 503, and never dropped in silence;
- spans of OpenTelemetry, if OTEL_EXPORTER_OTLP_ENDPOINT says where they go.

Left out on purpose: access control (put it behind the same gateway as your other services), a
circuit breaker (a lookup that can't be answered costs the deadline, no more), and spans that
continue in gatherd's own: the SDK doesn't send the trace on yet.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, TracerProvider
from pydantic import BaseModel, Field

from gatherd import AsyncClient
from gatherd.errors import DeadlineExceeded, GatherdError, InvalidArgument, RetryableError

logger = logging.getLogger("scorer")

Floats = NDArray[np.float32]

# gatherd is away, too slow or overloaded: the cases for a fallback. Other errors are mistakes.
AWAY: Final = (RetryableError, DeadlineExceeded)
# An update waits for a disk, and the SDK retries it; it is done once.
UPDATE_SECONDS: Final = 5.0
IDS_MAX: Final = 10_000

Id = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that the environment gives."""

    url: str
    token_file: str | None
    table: str
    dim: int
    timeout_seconds: float
    fallback: Path | None
    """A .npy file of (dim,); without one zeros, which favour no candidate."""

    @classmethod
    def from_environment(cls) -> "Settings":
        """KeyError naming the variable that isn't set."""
        given = os.environ
        fallback = given.get("SCORER_FALLBACK")
        return cls(
            url=given["GATHERD_URL"],
            token_file=given.get("GATHERD_TOKEN_FILE") or None,
            table=given["SCORER_TABLE"],
            dim=int(given["SCORER_DIM"]),
            timeout_seconds=float(given.get("SCORER_TIMEOUT_SECONDS", "0.25")),
            fallback=Path(fallback) if fallback else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The vectors of a request's ids, float32 (ids, dim), and how far they can be trusted."""

    vectors: Floats
    is_fallback: bool
    unknown_ids: int


class Embeddings:
    """The table in gatherd, and its fallback."""

    def __init__(self, settings: Settings, tracer: trace.Tracer) -> None:
        """Nothing is connected yet. ValueError for a fallback of another shape."""
        self._settings = settings
        self._tracer = tracer
        self._client = AsyncClient(
            settings.url, timeout=settings.timeout_seconds, token_file=settings.token_file
        )
        self._fallback = np.zeros(settings.dim, np.float32)
        if settings.fallback is not None:
            self._fallback = np.load(settings.fallback).astype(np.float32)
        if self._fallback.shape != (settings.dim,):
            raise ValueError(
                f"the fallback has shape {self._fallback.shape}, not ({settings.dim},)"
            )

    async def embed(self, ids: list[int]) -> Embedded:
        """The ids' vectors, or the fallback's in time. GatherdError for an error in the set-up."""
        table = self._settings.table
        with self._tracer.start_as_current_span("gatherd.lookup", kind=SpanKind.CLIENT) as span:
            span.set_attributes({"gatherd.table": table, "gatherd.ids": len(ids)})
            try:
                vectors, status = await self._client.lookup(
                    table, ids, missing="default", return_status=True
                )
            except AWAY as error:
                logger.warning("scoring without gatherd: %s", error)
                span.set_attributes({"gatherd.fallback": True, "error.type": error.reason})
                return Embedded(np.tile(self._fallback, (len(ids), 1)), True, 0)
            span.set_attribute("gatherd.fallback", False)
        return Embedded(vectors, False, int(np.count_nonzero(status)))

    async def train(self, ids: list[int], gradients: Floats) -> int:
        """One step of the table's optimizer; returns the log position at which it is durable."""
        table = self._settings.table
        with self._tracer.start_as_current_span("gatherd.update", kind=SpanKind.CLIENT) as span:
            span.set_attributes({"gatherd.table": table, "gatherd.ids": len(ids)})
            result = await self._client.apply_gradients(
                table, ids, gradients, timeout=UPDATE_SECONDS
            )
            span.set_attribute("gatherd.lsn", result.lsn)
        return result.lsn

    async def check(self) -> None:
        """GatherdError when the table isn't available, or isn't the model's."""
        info = await self._client.table(self._settings.table)
        if info.dim != self._settings.dim:
            raise InvalidArgument(
                f"table {info.name!r} has dim {info.dim}, the model wants {self._settings.dim}"
            )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class ScoreRequest(BaseModel):
    """Ids of what was liked, and of what could be shown."""

    liked: list[Id] = Field(min_length=1, max_length=IDS_MAX)
    candidates: list[Id] = Field(min_length=1, max_length=IDS_MAX)


class Scores(BaseModel):
    """A number in (0, 1) for each candidate, in their order."""

    scores: list[float]
    fallback: bool
    unknown_ids: int


class Feedback(BaseModel):
    """What was shown to somebody, and whether it was clicked."""

    liked: list[Id] = Field(min_length=1, max_length=IDS_MAX)
    candidate: Id
    clicked: bool


class Trained(BaseModel):
    """The score before the step, and where in gatherd's log the step is."""

    score: float
    lsn: int


def score(liked: Floats, candidates: Floats) -> Floats:
    """The model: (n, dim) and (m, dim) → (m,)."""
    scores: Floats = 1 / (1 + np.exp(-(candidates @ liked.mean(axis=0))))
    return scores


def gradients(liked: Floats, candidate: Floats, *, clicked: bool) -> Floats:
    """Of the logistic loss, by the liked vectors and the candidate's, in order: (n + 1, dim)."""
    mean = liked.mean(axis=0)
    slope = score(liked, candidate[None])[0] - clicked
    by_liked = np.tile(slope * candidate / len(liked), (len(liked), 1))
    return np.concatenate([by_liked, slope * mean[None]]).astype(np.float32)


def create_app(settings: Settings | None = None, traces: TracerProvider | None = None) -> FastAPI:
    """The application; run it by `uvicorn --factory scorer:create_app`."""
    settings = settings or Settings.from_environment()
    tracer = trace.get_tracer("scorer", tracer_provider=traces or open_traces())
    embeddings = Embeddings(settings, tracer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await embeddings.close()

    app = FastAPI(title="scorer", lifespan=lifespan)

    @app.middleware("http")
    async def spanned(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """A span for each request, in its caller's trace."""
        context = propagate.extract(dict(request.headers))
        name = f"{request.method} {request.url.path}"
        with tracer.start_as_current_span(name, context=context, kind=SpanKind.SERVER) as span:
            response = await answer(request)
            span.set_attribute("http.response.status_code", response.status_code)
            return response

    @app.exception_handler(GatherdError)
    async def failed(_: Request, error: Exception) -> Response:
        assert isinstance(error, GatherdError)
        # Its message names tables and ids, and never a token.
        body = {"error": error.reason, "message": error.message}
        if isinstance(error, AWAY):
            return JSONResponse(body, 503, {"Retry-After": "1"})
        logger.error("gatherd refused: %s", error)
        return JSONResponse(body, 503)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Ready without gatherd too, thanks to the fallback; not with a wrong token or table."""
        try:
            await embeddings.check()
        except AWAY as error:
            return {"status": "ready", "gatherd": error.reason}
        return {"status": "ready", "gatherd": "ready"}

    @app.post("/score")
    async def post_score(asked: ScoreRequest) -> Scores:
        embedded = await embeddings.embed([*asked.liked, *asked.candidates])
        count = len(asked.liked)
        scores = score(embedded.vectors[:count], embedded.vectors[count:])
        return Scores(
            scores=scores.tolist(),
            fallback=embedded.is_fallback,
            unknown_ids=embedded.unknown_ids,
        )

    @app.post("/feedback")
    async def post_feedback(told: Feedback) -> Any:
        ids = [*told.liked, told.candidate]
        embedded = await embeddings.embed(ids)
        if embedded.is_fallback or embedded.unknown_ids:
            # Vectors that aren't the ids' own would teach it nonsense.
            what = "AWAY" if embedded.is_fallback else "UNKNOWN_IDS"
            status = 503 if embedded.is_fallback else 422
            return JSONResponse({"error": what, "message": "nothing was trained"}, status)
        liked, candidate = embedded.vectors[:-1], embedded.vectors[-1]
        step = gradients(liked, candidate, clicked=told.clicked)
        before = float(score(liked, candidate[None])[0])
        return Trained(score=before, lsn=await embeddings.train(ids, step))

    return app


def open_traces() -> TracerProvider | None:
    """The exporter of spans that OTEL_EXPORTER_OTLP_… sets; None, for no spans, if it isn't set."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = SdkProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
