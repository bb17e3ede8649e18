"""Addresses to listening sockets, bound once by the supervisor for all its workers."""

import errno
import ipaddress
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from gatherd_server.errors import AddressInUse, ConfigError, StartError

logger = logging.getLogger("gatherd.supervisor")

# Who may open a Unix socket may do everything there: its owner and its group.
UNIX_SOCKET_MODE = 0o660
# The workers' way to the writer, who believes them.
WRITER_SOCKET_MODE = 0o600
# In the data dir: where the server answers HTTP, and where its workers reach the writer.
SERVER_SOCKET_NAME = "server.sock"
WRITER_SOCKET_NAME = "writer.sock"


def open_beside(folder: Path, name: str) -> tuple[int, Path]:
    """A descriptor of `folder`, and a path to `name` in it that is short while that is open.

    A socket's path has at most 107 bytes; a data dir's can have more.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return fd, Path(f"/proc/self/fd/{fd}") / name


def split_address(address: str, option: str) -> tuple[str, int]:
    """HOST and PORT of `address`, an IPv6 host in brackets. ConfigError when it isn't one."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{option} {address!r} isn't HOST:PORT")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_http(address: str, backlog: int) -> socket.socket:
    """A listening TCP socket, to be shared by all workers.

    One socket, not one a worker with SO_REUSEPORT: closing one of several such listeners resets
    the connections that wait in its queue. AddressInUse when the port is taken.
    """
    sock = _bound("--http", address, reuse_port=False)
    sock.listen(backlog)
    return sock


def reserve_grpc(address: str) -> tuple[socket.socket, str]:
    """Hold a port for the workers' gRPC servers; returns the holder and HOST:PORT.

    grpcio takes no socket, so every worker binds the port itself with SO_REUSEPORT, under which a
    second server would share it silently. Therefore the port is first bound exclusively, and then
    held by a socket that never listens (and so gets no connections) for as long as we run.
    """
    probe = _bound("--grpc", address, reuse_port=False)
    host, port = probe.getsockname()[:2]
    probe.close()
    holder = _bound("--grpc", join_address(host, port), reuse_port=True)
    # From here on nobody's exclusive bind succeeds, also while no worker listens yet.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return holder, join_address(host, port)


def check_loopback(setting: str, host: str) -> None:
    """ConfigError unless `host`, which is bound, is reached from this machine alone."""
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"--{setting} {host} is reached from other machines, and anybody there could change "
            "and delete tables: give --tokens FILE (`gatherd token` writes it), or --insecure "
            "where the network lets in only whom you trust"
        )


def bind_unix(path: Path, backlog: int, mode: int = UNIX_SOCKET_MODE) -> socket.socket:
    """A listening Unix socket at `path`, in place of one that nobody answers any more.

    AddressInUse when somebody does, StartError when `path` is something else.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        sock.bind(str(path))
        path.chmod(mode)  # before it listens, so that nobody comes earlier
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
    """Delete the socket `path`, at the end of a server. One that has to stay does no harm.

    Its file system may be read-only by now; nobody answers there, and the next start sees that.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the socket %s can't be deleted: %s", path.name, error.strerror)


def _bound(option: str, address: str, *, reuse_port: bool) -> socket.socket:
    host, port = split_address(address, option)
    try:
        family, kind, proto, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"{option} {address}: host {host!r} can't be resolved: {error}") from None
    sock = socket.socket(family, kind, proto)
    try:
        # Lets a restarted server bind past connections in TIME_WAIT, but not past a listener.
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
