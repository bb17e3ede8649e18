"""Numbers that client and server must agree on, because tables, logs and ids contain them."""

from typing import Final

LIVE_VERSION: Final = 0
"""In a request: the live version of a table; versions are counted from 1."""
ROWS_MAX: Final = 2**48
"""Rows of a table."""
DIM_MAX: Final = 2**20
"""Elements of a row."""

SESSION_BYTES: Final = 16
"""The name of a session, the first half of a push's request id; it is logged with the push."""
KEY_CHARS_MAX: Final = 255
"""Visible ASCII characters of an idempotency key, which is logged too."""
