"""Headers and media types, as both sides of the HTTP port spell them.

Names are in lower case, as a server reads them; to HTTP their case doesn't matter.
"""

from typing import Final

AUTHORIZATION: Final = "authorization"
RETRY_AFTER: Final = "retry-after"
"""The header, and over gRPC the trailer, with the seconds after which a retry may help."""
CONNECT_VERSION: Final = "connect-protocol-version"
CONNECT_TIMEOUT: Final = "connect-timeout-ms"
TIMEOUT_DIGITS_MAX: Final = 10
"""The most digits of the timeout header's value, by the protocol."""

PROTO: Final = "application/proto"
JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"

TOKEN_CHARS_MAX: Final = 512
"""The most characters of the token in an Authorization header."""
