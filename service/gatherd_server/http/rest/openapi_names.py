"""The part of /openapi.json on names: rename, aliases, and tables as copies of others."""

from typing import Any, Final

from gatherd_server.http.rest.openapi_parts import body, responses
from gatherd_server.http.rest.openapi_updates import CHANGED, change
from gatherd_server.http.rest.update_schemas import AliasBody, CloneBody, RenameBody, ReplaceBody

MODELS: Final = (RenameBody, AliasBody, CloneBody, ReplaceBody)

RENAME: Final = change(
    "renameTable",
    "Give a table another name; its aliases follow",
    openapi_extra=body(RenameBody, {"to": "things"}),
)
CLONE: Final = change(
    "cloneTable",
    "Make a table as a copy of this one at one LSN, optimizer state and all",
    openapi_extra=body(CloneBody, {"to": "copied_items"}),
)
REPLACE: Final = change(
    "replaceTable",
    "Make a copy of another table's live version the new live version",
    openapi_extra=body(ReplaceBody, {"source": "better_items"}),
)
SET_ALIAS: Final = change(
    "setAlias",
    "Point an alias to a table; one that there is already is switched at one instant",
    openapi_extra=body(AliasBody, {"table": "items"}),
)
DELETE_ALIAS: Final[dict[str, Any]] = {
    **change("deleteAlias", "Remove an alias; its table stays"),
    "responses": responses(CHANGED, 404, 409, 422, 429, 500, 503, 507),
}
