"""The image's HEALTHCHECK and Kubernetes' probes run this: status 0 when the server here is ready.

With the argument /healthz, status 0 says that it is alive. Asks the Unix socket in the data dir,
which takes no token, no TLS and no client's certificate, so it works whatever the ports are set to.
A server without a data dir, or with a read-only one, has no such socket and is asked on its HTTP
port. It imports only modules that load in milliseconds: this runs every few seconds, for ever.
"""

import os
import socket
import sys

TIMEOUT_SECONDS = 3
PATHS = ("/readyz", "/healthz")


def connect() -> socket.socket:
    """A connection to the server."""
    data_dir = os.environ.get("GATHERD_DATA_DIR")
    if data_dir:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_SECONDS)
        try:
            connection.connect(f"{data_dir}/server.sock")
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
    port = int(os.environ.get("GATHERD_HTTP", "127.0.0.1:8000").rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
    if os.environ.get("GATHERD_TLS_CERT"):
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # This is the container's own server, whatever name its certificate has.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    return connection


def main() -> None:
    """Ask, and print the answer: the engine keeps the last few answers."""
    path = sys.argv[1] if len(sys.argv) > 1 else PATHS[0]
    if path not in PATHS:
        sys.exit(f"usage: healthcheck.py [{'|'.join(PATHS)}]")
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with connect() as connection:
            connection.sendall(request.encode())
            reply = b""
            while data := connection.recv(4096):
                reply += data
    except OSError as error:
        sys.exit(f"not reached: {error}")
    head, _, body = reply.partition(b"\r\n\r\n")
    print(body.decode(errors="replace").strip())
    sys.exit(0 if head.startswith(b"HTTP/1.1 200 ") else 1)


if __name__ == "__main__":
    main()
