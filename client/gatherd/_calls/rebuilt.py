"""Pickling and copying: a client, with its connections and locks, is rebuilt from its settings.

So clients can be sent to spawned workers and to other machines, and can be part of an object that
is copied as a whole, such as the dataset of a data loader.
"""

from typing import Any, Final

from gatherd._shown import html_table

# What a notebook shows of a client. Never a token, a header or a proxy's password.
_SHOWN: Final = ("url", "timeout", "retries", "batching", "busy_poll_us", "token_file", "ca")


class Rebuilt:
    """Pickled and copied as its class and `_settings`, its constructor's arguments.

    The copy has its own connections, and numbers its pushes in its own session. A pickle contains a
    `token` as it was given; of a `token_file` it contains only the path.
    """

    _settings: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (type(self), self._settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings['url']!r})"

    def _repr_html_(self) -> str:
        """The HTML that a notebook displays; nothing is asked of the server."""
        settings = self._settings
        rows = [(name, settings[name]) for name in _SHOWN if settings.get(name) is not None]
        return html_table(type(self).__name__, ("", ""), rows)


def made(cls: type[Rebuilt], settings: dict[str, Any]) -> Rebuilt:
    """The copy that a pickle stands for."""
    return cls(**settings)
