"""The outcome of a failed request, under OUTCOME in an error's metadata.

NOT_SENT: it never left the client. UNKNOWN: its answer was lost, or the server lost track of it.
With neither, a gatherd server answered and did nothing of what was asked.
"""

from typing import Final

OUTCOME: Final = "outcome"
NOT_SENT: Final = "not sent"
UNKNOWN: Final = "unknown"
