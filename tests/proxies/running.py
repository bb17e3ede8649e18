"""nginx and HAProxy in front of a server, each in a process of its own, on ephemeral ports."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.server import wait_until

START_SECONDS = 20.0
BODY_BYTES_MAX = 1 << 20
"""What the place /small takes."""


@dataclass(frozen=True)
class Proxied:
    """Where a proxy answers for a server.

    `http` keeps its connections to the server. Below it are /prefix, which the server doesn't see
    (it sees its own, /kept), /small with a bound on bodies, /dead with nobody behind it, and /ws,
    where nginx passes upgrades on by its usual recipe; HAProxy does so everywhere.
    """

    name: str
    http: str
    grpc: str


def needs(tool: str) -> pytest.MarkDecorator:
    """Skips what `tool` isn't there for."""
    return pytest.mark.skipif(
        shutil.which(tool) is None, reason=f"no {tool}: apt-get couldn't install it"
    )


# docs/proxies.md explains these lines.
NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/log; {user}
worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream gatherd {{ server {http}; keepalive 4; }}
  upstream dead {{ server {dead}; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
  client_max_body_size 64m; proxy_connect_timeout 2s; proxy_read_timeout 20s;
  server {{
    listen {own_http};
    location / {{ proxy_pass http://gatherd; }}
    location /prefix/ {{ proxy_pass http://gatherd/; }}
    location /small/ {{ client_max_body_size {body}; proxy_pass http://gatherd/; }}
    location /dead/ {{ proxy_pass http://dead/; }}
    location /ws/ {{
      proxy_pass http://gatherd/; proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    }}
  }}
  server {{
    listen {own_grpc} http2;
    location / {{ grpc_pass grpc://{grpc}; }}
  }}
}}
"""
HAPROXY = """
global
  maxconn 512
defaults
  mode http
  timeout connect 2s
  timeout client 20s
  timeout server 20s
  http-reuse always
  retries 0
frontend http
  bind {own_http}
  acl small path_beg /small/
  http-request deny deny_status 413 if small {{ req.hdr(content-length) -m int gt {body} }}
  use_backend dead if {{ path_beg /dead/ }}
  http-request replace-path /(prefix|small|ws)(/.*) \\2 if {{ path_reg ^/(prefix|small|ws)/ }}
  default_backend gatherd
backend gatherd
  server one {http}
backend dead
  server one {dead}
frontend grpc
  bind {own_grpc} proto h2
  default_backend grpc
backend grpc
  server one {grpc} proto h2
"""


def free_address() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def proxied(name: str, folder: Path, http: str, grpc: str) -> Iterator[Proxied]:
    """Run nginx or HAProxy in front of the server at these URLs."""
    own_http, own_grpc = free_address(), free_address()
    form, command = {
        "nginx": (NGINX, ["nginx", "-p", str(folder), "-c"]),
        "haproxy": (HAPROXY, ["haproxy", "-db", "-f"]),
    }[name]
    config = folder / "config"
    config.write_text(
        form.format(
            folder=folder,
            user="user root;" if os.getuid() == 0 else "",
            http=urlsplit(http).netloc,
            grpc=urlsplit(grpc).netloc,
            own_http=own_http,
            own_grpc=own_grpc,
            dead=free_address(),
            body=BODY_BYTES_MAX,
        )
    )
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            [*command, str(config)], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(lambda: _listens(process, own_http, folder), f"{name} listens", START_SECONDS)
        yield Proxied(name, f"http://{own_http}", f"grpc://{own_grpc}")
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _listens(process: "subprocess.Popen[bytes]", address: str, folder: Path) -> bool:
    if process.poll() is not None:
        raise AssertionError((folder / "output").read_text())
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def connections_of(port: int) -> int:
    """TCP connections to and from a local port, those that ended lately too."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(f":{port:04X}" in (line.split()[1][-5:], line.split()[2][-5:]) for line in lines)
