"""A model server whose embeddings are in gatherd: a FastAPI app that ranks items for a user.

A request names a user and some items. One lookup fetches the user's row and the items' rows from
two tables, in one round trip, and the score of an item is the dot product of the two.

    GATHERD_URL=http://127.0.0.1:8000 uvicorn model_server:app

deploy/model_server/scorer.py is the same idea grown up: tokens, a fallback while gatherd is away,
training from clicks, traces, and an image.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from gatherd import AsyncClient, DeadlineExceeded, GatherdError, IdOutOfRange, RetryableError

# How long a lookup may take, its retries included. Far below the deadline of our own callers.
LOOKUP_SECONDS = 0.2


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the whole process: it keeps its connections open between requests."""
    url = os.environ.get("GATHERD_URL", "http://127.0.0.1:8000")
    async with AsyncClient(url, timeout=LOOKUP_SECONDS) as app.state.client:
        yield


app = FastAPI(title="ranker", lifespan=lifespan)


class RankRequest(BaseModel):
    """Who asks, and what could be shown."""

    user: int
    items: list[int] = Field(min_length=1, max_length=1000)


@app.post("/rank")
async def rank(asked: RankRequest, request: Request) -> dict[str, list[float]]:
    """A score for each item, in the order of the request."""
    client: AsyncClient = request.app.state.client
    # Both tables are answered by one consistent set of versions, or neither is.
    rows = await client.lookup_many({"users": [asked.user], "items": asked.items})
    scores = rows["items"] @ rows["users"][0]
    return {"scores": scores.tolist()}


@app.exception_handler(GatherdError)
async def failed(_: Request, error: GatherdError) -> JSONResponse:
    """The classes say whose fault it is."""
    if isinstance(error, IdOutOfRange):  # names the first ids without a row
        return JSONResponse({"error": error.message}, 422)
    if isinstance(error, RetryableError | DeadlineExceeded):  # away, full or too slow
        return JSONResponse({"error": error.message}, 503, {"Retry-After": "1"})
    return JSONResponse({"error": error.message}, 500)  # a mistake of ours, such as a wrong table
