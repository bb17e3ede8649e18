"""The part of /openapi.json on searches for neighbors."""

from typing import Any, Final

from gatherd_server.http.rest.openapi_parts import body, json_content, responses
from gatherd_server.http.rest.schemas import NeighborsBody, NeighborsReply

MODELS: Final = (NeighborsBody, NeighborsReply)

NEIGHBORS: Final[dict[str, Any]] = {
    "operation_id": "neighbors",
    "tags": ["lookup"],
    "summary": "The nearest rows, by comparing every row",
    "description": (
        "Exact, and as slow as reading the whole table: for exploration. A search is ended when "
        "its client leaves. Of equal scores the lower id comes first; rows whose score is NaN come "
        "last."
    ),
    "responses": responses(
        {
            "description": "Ids, scores and, for a keyed table, keys of the neighbors.",
            "content": json_content(
                NeighborsReply,
                {
                    "ids": [[7, 2]],
                    "scores": [[0.93, 0.8]],
                    "keys": [["queen", "prince"]],
                    "kind": "bytes",
                    "encoding": "utf-8",
                    "metric": "cosine",
                    "version": 3,
                },
            ),
        },
        *(400, 404, 406, 409, 413, 415, 422, 429, 500, 503),
    ),
    "openapi_extra": body(NeighborsBody, {"ids": [4], "k": 2}),
}
