"""A page of another site asks over Connect, in JSON and in protobuf, as connect-web does."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Error

from browser.conftest import DIM, Watched
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from support.cli import invoke
from support.server import RunningServer

IDS = np.array([3, 0, 3], "<i8")
LOOKUP = "/gatherd.v1.EmbeddingService/Lookup"
# What connect-web's transport does for a unary call.
CALL = """
async ({ url, type, body, token }) => {
  const headers = {
    "Content-Type": `application/${type}`,
    "Connect-Protocol-Version": "1",
    "Connect-Timeout-Ms": "10000",
    ...(token ? { Authorization: `Bearer ${token}` } : {}),
  };
  const answer = await fetch(url, { method: "POST", headers, body: new Uint8Array(body) });
  const read = new Uint8Array(await answer.arrayBuffer());
  return {
    status: answer.status,
    body: Array.from(read),
    requestId: answer.headers.get("x-request-id"),
    retryAfter: answer.headers.get("retry-after"),
  };
}
"""


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another site</title>")

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def site() -> Iterator[str]:
    """A web site with one empty page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def request() -> embedding_pb2.LookupRequest:
    ids = tensor_pb2.Tensor(dtype="DTYPE_INT64", shape=IDS.shape, data=IDS.tobytes())
    return embedding_pb2.LookupRequest(table="items", ids=ids)


def json_request() -> bytes:
    data = base64.b64encode(IDS.tobytes()).decode()
    ids = f'{{"dtype": "DTYPE_INT64", "shape": ["{IDS.size}"], "data": "{data}"}}'
    return f'{{"table": "items", "ids": {ids}}}'.encode()


def asked(watched: Watched, server: str, kind: str, body: bytes, token: str = "") -> Any:
    given = {"url": server + LOOKUP, "type": kind, "body": list(body), "token": token}
    return watched.page.evaluate(CALL, given)


@pytest.mark.parametrize("has_tokens", [False, True], ids=["open", "tokens"])
def test_a_page_of_a_named_origin_asks_over_connect(
    tables: Path, watched: Watched, tmp_path: Path, has_tokens: bool
) -> None:
    token, options = "", list[str]()
    if has_tokens:
        file = tmp_path / "tokens"
        token = invoke(
            "token", "page", "--tokens", file, "--scope", "read", "--table", "*"
        ).stdout.strip()
        options = ["--tokens", str(file)]
    expected = np.load(tables / "data" / "tables" / "items" / "v000001" / "weights.npy")[IDS]
    with site() as origin:
        with RunningServer(
            *("--data-dir", tables / "data", "--cors-origins", origin),
            *options,
            log_path=tmp_path / "log",
        ) as server:
            watched.page.goto(origin)
            for _ in range(2):  # the second time on a connection whose head is known
                proto = asked(watched, server.http, "proto", request().SerializeToString(), token)
                assert proto["status"] == 200
                reply = embedding_pb2.LookupResponse.FromString(bytes(proto["body"]))
                rows = np.frombuffer(reply.vectors.data, "<f4").reshape(-1, DIM)
                np.testing.assert_array_equal(rows, expected)
            told = asked(watched, server.http, "json", json_request(), token)
            assert told["status"] == 200
            data = json.loads(bytes(told["body"]))["vectors"]["data"]
            rows = np.frombuffer(base64.b64decode(data), "<f4").reshape(-1, DIM)
            np.testing.assert_array_equal(rows, expected)
            refused = asked(watched, server.http, "json", b"{}", token)
            assert refused["status"] in (400, 404)
            assert refused["requestId"], "the page reads the headers that are exposed"


def test_a_page_of_another_origin_gets_nothing(
    tables: Path, watched: Watched, tmp_path: Path
) -> None:
    with site() as origin, site() as other:
        with RunningServer(
            *("--data-dir", tables / "data", "--cors-origins", origin), log_path=tmp_path / "log"
        ) as server:
            watched.page.goto(other)
            for kind, body in (("proto", request().SerializeToString()), ("json", json_request())):
                with pytest.raises(Error, match="Failed to fetch"):
                    asked(watched, server.http, kind, body)
