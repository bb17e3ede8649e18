"""Pickling and copying: what has connections, locks and an event loop is made anew of its settings.

So clients go to workers that are spawned, to other machines, and into whatever is copied as a
whole, such as the dataset of a data loader.
"""

from typing import Any


class Rebuilt:
    """Pickled and copied as its class and its constructor's arguments, which `_settings` are.

    The copy has connections of its own, and its pushes count in a session of their own. A token
    that was given as such is in the pickle; of a token_file only the path is.
    """

    _settings: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self._settings)


def _made(cls: type[Rebuilt], settings: dict[str, Any]) -> Rebuilt:
    return cls(**settings)
