"""Content negotiation: the media types of a request's body and of its answer."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.exceptions import HTTPException

from gatherd.errors import MalformedRequest

OCTETS: Final = "application/octet-stream"
NPY: Final = "application/x-npy"

# gzip because some Connect clients use it unasked; replies are never compressed.
ENCODINGS: Final = ("identity", "gzip")
ACCEPT_ENCODING: Final = ", ".join(ENCODINGS)
# RFC 9110, 12.4.2.
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def content_encoding(headers: Mapping[bytes, bytes]) -> str:
    """How the body is compressed: "identity" when it isn't, in lower case."""
    return headers.get(b"content-encoding", b"").decode("latin-1").strip().lower() or "identity"


def content_type(headers: Mapping[bytes, bytes], accepted: Sequence[str]) -> str:
    """The body's media type, one of `accepted`.

    HTTPException 415 when it is another one or missing, for a charset other than UTF-8, and for a
    compression other than gzip.
    """
    encoding = content_encoding(headers)
    if encoding not in ENCODINGS:
        raise HTTPException(
            415,
            f"the body has Content-Encoding {encoding!r}; accepted are: {ACCEPT_ENCODING}",
            {"Accept-Encoding": ACCEPT_ENCODING},
        )
    value = headers.get(b"content-type", b"").decode("latin-1")
    media_type, charset = split(value)
    if media_type in accepted and charset in ("", "utf-8", "utf8"):
        return media_type
    listed = ", ".join(accepted)
    told = f"the body's Content-Type is {value!r}" if value else "the body has no Content-Type"
    raise HTTPException(415, f"{told}; accepted are: {listed}", {"Accept-Post": listed})


def split(value: str) -> tuple[str, str]:
    """The media type in a Content-Type header and its charset, in lower case; "" for none."""
    media_type, *parameters = value.lower().split(";")
    charset = ""
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip() == "charset":
            charset = given.strip().strip('"')
    return media_type.strip(), charset


def best_answer(accept: Sequence[str], offered: Sequence[str]) -> str:
    """The media type of `offered` that the Accept headers prefer; the first when they don't say.

    HTTPException 406 when they accept none; MalformedRequest when a weight can't be read.
    """
    ranges = [_range(item) for value in accept for item in value.split(",") if item.strip()]
    if not ranges:
        return offered[0]
    liked = max(offered, key=lambda media_type: _weight(media_type, ranges))
    if _weight(liked, ranges) > 0:
        return liked
    raise HTTPException(
        406, f"the answer can't be given as {', '.join(accept)}; offered are: {', '.join(offered)}"
    )


def _range(item: str) -> tuple[str, float]:
    media_range, *parameters = item.lower().split(";")
    weight = "1"
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip() == "q":
            weight = given.strip()
    if not _WEIGHT.fullmatch(weight):
        raise MalformedRequest(f"the Accept header has the weight {weight!r}; it must be 0 to 1")
    return media_range.strip(), float(weight)


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    # The most specific range counts, whatever the others say: `*/*, application/json;q=0`.
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        weights = [weight for media_range, weight in ranges if media_range == pattern]
        if weights:
            return max(weights)
    return 0.0
