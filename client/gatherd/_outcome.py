"""What became of a failed request, under OUTCOME in an error's metadata.

NOT_SENT when it never left the client, UNKNOWN when its answer was lost or the server lost track of
it. Without either a gatherd server answered, and did nothing of what was asked.
"""

from typing import Final

OUTCOME: Final = "outcome"
NOT_SENT: Final = "not sent"
UNKNOWN: Final = "unknown"
