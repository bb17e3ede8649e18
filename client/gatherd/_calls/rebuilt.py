"""Pickling and copying: a client, with its connections and locks, is rebuilt from its settings.

So clients can be sent to spawned workers and to other machines, and can be part of an object that
is copied as a whole, such as the dataset of a data loader.
"""

from typing import Any


class Rebuilt:
    """Pickled and copied as its class and `_settings`, its constructor's arguments.

    The copy has its own connections, and numbers its pushes in its own session. A pickle contains a
    `token` as it was given; of a `token_file` it contains only the path.
    """

    _settings: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self._settings)


def _made(cls: type[Rebuilt], settings: dict[str, Any]) -> Rebuilt:
    return cls(**settings)
