"""The pieces of /openapi.json."""

from typing import Any, Final

from gatherd_proto.headers import JSON, PROBLEM_JSON, RETRY_AFTER

BINARY: Final[dict[str, Any]] = {"type": "string", "format": "binary"}
REF: Final = "#/components/schemas/"

_ERRORS: Final[dict[int, tuple[str, str, str]]] = {
    400: (
        "The body isn't what its Content-Type says.",
        "MALFORMED_REQUEST",
        "the body isn't JSON in UTF-8: unexpected end of data: line 1 column 8 (char 7)",
    ),
    401: (
        "The server wants a token, and got none that it knows.",
        "UNAUTHENTICATED",
        "this server takes a token: send it as `Authorization: Bearer TOKEN`",
    ),
    403: (
        "The token isn't for this operation, or not for this table.",
        "PERMISSION_DENIED",
        "token 'ranker' isn't for table 'words'; it is for items*",
    ),
    404: (
        "No such table or version.",
        "TABLE_NOT_FOUND",
        "no table 'word'; did you mean 'words'?",
    ),
    406: (
        "No media type of the Accept header is offered.",
        "INVALID_ARGUMENT",
        f"the answer can't be given as text/html; offered are: {JSON}",
    ),
    409: (
        "Right, but not in the state that things are in; the reason says which.",
        "TABLE_REFUSED",
        "table 'words' can't be served: words.npy is truncated",
    ),
    413: (
        "The request, or the reply it asks for, is over a limit.",
        "LIMIT_EXCEEDED",
        "the request has 2000000 ids; this server takes at most 1000000 (ids_max)",
    ),
    415: (
        "The body's Content-Type or Content-Encoding isn't taken.",
        "MALFORMED_REQUEST",
        f"the body has no Content-Type; accepted are: {JSON}",
    ),
    422: (
        "The request is wrong in itself.",
        "ID_OUT_OF_RANGE",
        "table 'words' has 400000 rows; ids[3]=400021 is out of range: valid ids are 0 to 399999",
    ),
    429: (
        "The server has as many requests in flight as it takes. Try again after Retry-After.",
        "OVERLOADED",
        "the server has 256 requests in flight, as many as it takes; try again after a pause",
    ),
    500: (
        "The server's fault; its log says more.",
        "INTERNAL",
        "an unexpected error happened in the server; its log says more",
    ),
    503: (
        "Try again after Retry-After; without it (UPDATES_STOPPED), after a restart.",
        "UNAVAILABLE",
        "the server is starting or stopping",
    ),
    507: (
        "The disk is full; nothing was changed.",
        "DISK_FULL",
        "the log can't grow: the disk is full",
    ),
}
_TITLES: Final = {406: "Not Acceptable", 415: "Unsupported Media Type"}


def error(status: int) -> dict[str, Any]:
    """The description of a status other than 200."""
    description, reason, detail = _ERRORS[status]
    urn = "urn:gatherd:error:" + reason.lower().replace("_", "-")
    example = {
        "type": "about:blank" if status in _TITLES else urn,
        "title": _TITLES.get(status) or reason.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "error": detail,
        "reason": reason,
        "metadata": {},
    }
    content = {PROBLEM_JSON: {"schema": {"$ref": REF + "Problem"}, "example": example}}
    response: dict[str, Any] = {"description": description, "content": content}
    if status in (429, 503):
        retry = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        response["headers"] = {RETRY_AFTER.title(): retry}
    if status in (401, 403):
        challenge = {"description": "As RFC 6750 has it.", "schema": {"type": "string"}}
        response["headers"] = {"WWW-Authenticate": challenge}
    return response


def json_content(model: type[Any], example: Any = None) -> dict[str, Any]:
    """JSON of a `model`."""
    content: dict[str, Any] = {"schema": {"$ref": REF + model.__name__}}
    if example is not None:
        content["example"] = example
    return {JSON: content}


def responses(success: dict[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of the 200 reply and of the possible errors."""
    return {200: success, **{status: error(status) for status in statuses}}


def option(name: str, default: str | None, description: str, **schema: Any) -> dict[str, Any]:
    """A query parameter.

    Its default stands in its description. Forms made of the document send a schema's default, and
    next to a body of JSON no option is taken.
    """
    told = description if default is None else f"{description} Absent, it is {default}."
    shown: dict[str, Any] = {"type": "string", **schema}
    return {"name": name, "in": "query", "description": told, "schema": shown}


def body(model: type[Any], example: Any, *, required: bool = True) -> dict[str, Any]:
    """A request body of JSON."""
    return {"requestBody": {"required": required, "content": json_content(model, example)}}
