"""How an error travels over both wires: its code's name and its ErrorInfo."""

from typing import Final

ERROR_DOMAIN: Final = "gatherd"
"""The domain of our ErrorInfo: its reason is one of gatherd.errors."""
ERROR_INFO_TYPE: Final = "google.rpc.ErrorInfo"

DETAILS_TRAILER: Final = "grpc-status-details-bin"
"""The trailer in which gRPC carries a google.rpc.Status."""

CANCELED: Final = "canceled"
"""The only code whose name differs: gRPC spells it with two l."""


def code_name(grpc_name: str) -> str:
    """A status code of gRPC as Connect, metrics and logs name it."""
    return CANCELED if grpc_name == "CANCELLED" else grpc_name.lower()
