"""docs/protocol.md lists every error a request can meet, as each wire has it."""

from pathlib import Path

from gatherd.errors import ClientError, GatherdError
from gatherd_server.errors import StartError
from gatherd_server.http.errors import rest_status
from gatherd_server.rpc.errors import status_code
from gatherd_server.wire.codes import CODES
from support.error_classes import ERROR_CLASSES

DOCUMENT = Path(__file__).parent.parent.parent / "docs/protocol.md"


def rows() -> list[str]:
    """The table's rows; `python -m docs.test_error_table` in tests/ prints them anew."""
    local = (ClientError, StartError)
    return [
        f"| `{cls.reason}` | `{cls.__name__}` | {status_code(cls('')).name} "
        f"| {CODES[cls]} | {rest_status(cls)} |"
        for cls in ERROR_CLASSES
        if cls is not GatherdError and not issubclass(cls, local)
    ]


def test_every_error_of_a_request_is_in_the_table() -> None:
    lines = DOCUMENT.read_text().splitlines()
    documented = lines[lines.index("## Errors") :]
    assert [line for line in documented if line.startswith("| `")] == rows()


if __name__ == "__main__":
    print("\n".join(rows()))
