"""An update as the caller asked for it: checked, before anything is sent."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """An update that is durable and that every lookup sees.

    `lsn` is its position in the log; `versions` has, by table, the version that was changed.
    """

    lsn: int
    versions: dict[str, int]
