"""Errors of the server process itself; the errors of requests are in gatherd.errors.

GatherdError
└── StartError                     the server can't start; the message is for the operator
    ├── ConfigError                a setting is wrong
    └── AddressInUse               a port or socket path is taken
"""

import logging

from gatherd.errors import GatherdError, InternalError

_UNEXPECTED = "an unexpected error happened in the server; its log says more"
_log = logging.getLogger("gatherd")


class StartError(GatherdError):
    """The server can't start."""

    reason = "START"


class ConfigError(StartError):
    """A setting is wrong."""

    reason = "CONFIG"


class AddressInUse(StartError):
    """A port or socket path is taken."""

    reason = "ADDRESS_IN_USE"


def unexpected(error: Exception) -> InternalError:
    """Log an unforeseen exception, once, and return the error to answer in its place."""
    _log.error("unexpected error while answering a request", exc_info=error)
    return InternalError(_UNEXPECTED)
