"""Errors of the server process itself; what a request can meet is in gatherd.errors.

GatherdError
└── StartError                     the server can't start; the message is for whoever started it
    ├── ConfigError                a setting is wrong
    └── AddressInUse               a port or socket path is taken
"""

from gatherd.errors import GatherdError


class StartError(GatherdError):
    """The server can't start."""

    reason = "START"


class ConfigError(StartError):
    """A setting is wrong."""

    reason = "CONFIG"


class AddressInUse(StartError):
    """A port or socket path is taken."""

    reason = "ADDRESS_IN_USE"
