"""Turns addresses into listening sockets, bound once by the supervisor for all its workers."""

import errno
import ipaddress
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from gatherd_server.errors import AddressInUse, ConfigError, StartError

logger = logging.getLogger("gatherd.supervisor")

# A Unix socket's owner and group may open it, and may then do everything there.
UNIX_SOCKET_MODE = 0o660
# The writer trusts its workers, so only the owner may open their socket.
WRITER_SOCKET_MODE = 0o600
# Sockets in the data dir: the server answers HTTP on one, workers reach the writer by the other.
SERVER_SOCKET_NAME = "server.sock"
WRITER_SOCKET_NAME = "writer.sock"


def open_beside(folder: Path, name: str) -> tuple[int, Path]:
    """A descriptor of `folder`, and a path to `name` in it that is short while that is open.

    A socket's path has at most 107 bytes; a data dir's can be longer.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return fd, Path(f"/proc/self/fd/{fd}") / name


def split_address(address: str, option: str) -> tuple[str, int]:
    """HOST and PORT of `address`, an IPv6 host in brackets. ConfigError when it isn't one."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{option} {address!r} isn't HOST:PORT", _about(option))
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_http(address: str, backlog: int) -> socket.socket:
    """A listening TCP socket, to be shared by all workers.

    It is one socket, not one for each worker with SO_REUSEPORT: closing one of several such
    listeners resets the connections in its queue. AddressInUse when the port is taken.
    """
    sock = _bound("--http", address, reuse_port=False)
    sock.listen(backlog)
    return sock


def reserve_grpc(address: str) -> tuple[socket.socket, str]:
    """Hold a port for the workers' gRPC servers; returns the holder and HOST:PORT.

    grpcio takes no socket, so every worker binds the port itself with SO_REUSEPORT. A second server
    would then share it silently. So the port is first bound exclusively. Afterwards a socket that
    never listens, and so gets no connections, holds it for as long as we run.
    """
    probe = _bound("--grpc", address, reuse_port=False)
    host, port = probe.getsockname()[:2]
    probe.close()
    holder = _bound("--grpc", join_address(host, port), reuse_port=True)
    # From here on every exclusive bind fails, even while no worker listens yet.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return holder, join_address(host, port)


def check_loopback(setting: str, host: str) -> None:
    """ConfigError unless the bound `host` can be reached only from this machine."""
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"--{setting} {host} is reached from other machines, and anybody there could change "
            "and delete tables: give --tokens FILE (`gatherd token` writes it), or --insecure "
            "where the network lets in only whom you trust",
            {"settings": setting},
        )


def bind_unix(path: Path, backlog: int, mode: int = UNIX_SOCKET_MODE) -> socket.socket:
    """A listening Unix socket at `path`, replacing one that nobody answers any more.

    AddressInUse when somebody answers there, StartError when `path` is something else.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        sock.bind(str(path))
        path.chmod(mode)  # before it listens, so that nobody connects earlier
        sock.listen(backlog)
    except StartError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise StartError(f"--unix {path} can't be bound: {error.strerror or error}") from None
    return sock


def _clear(path: Path) -> None:
    if path.exists() or path.is_symlink():
        if not path.is_socket():
            raise StartError(f"--unix {path} is there and isn't a socket")
        if _answers(path):
            raise AddressInUse(f"--unix {path} is taken by another process; choose another path")
        path.unlink()


def remove_socket(path: Path) -> None:
    """Delete the socket `path`, at the end of a server. A socket that is left does no harm.

    Its file system may be read-only by now. Nobody answers there, which the next start notices.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the socket %s can't be deleted: %s", path.name, error.strerror)


def resolved(option: str, address: str) -> str:
    """The numeric host of an address. ConfigError when it has none."""
    return str(_resolve(option, address)[4][0])


def _resolve(option: str, address: str) -> tuple[int, int, int, str, Any]:
    host, port = split_address(address, option)
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"{option} {address}: host {host!r} can't be resolved: {error}", _about(option)
        ) from None


def _about(option: str) -> dict[str, str]:
    return {"settings": option.removeprefix("--")}


def _bound(option: str, address: str, *, reuse_port: bool) -> socket.socket:
    host, port = split_address(address, option)
    family, kind, proto, _, target = _resolve(option, address)
    sock = socket.socket(family, kind, proto)
    try:
        # Lets a restarted server bind despite old connections in TIME_WAIT, but not a listener.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(target)
        if not reuse_port:
            # Two sockets with SO_REUSEADDR can both be bound; only one can listen.
            sock.listen(1)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"port {port} of {host} is taken; choose another with {option} HOST:PORT"
            ) from None
        raise StartError(f"{option} {address} can't be bound: {error.strerror}") from None
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False
