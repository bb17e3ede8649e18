"""Reads the bytes of a URI: http and https with the standard library, others with fsspec.

http and https use the proxies that `http_proxy`, `https_proxy` and `no_proxy` name, as curl does,
and follow redirects, though never from https to http. Errors say what happened and what to do.
"""

import base64
import http.client
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders.streams import ByteStream

# The wait for a server that sends nothing.
SILENCE_SECONDS: Final = 60
_TO_DO = {
    400: "the server takes the request for wrong; is the address whole?",
    401: "the server wants to know who asks: https://USER:PASSWORD@HOST/…, or a signed address",
    403: "the server refuses it; is a signed address past its time, or a token missing?",
    404: "there is nothing at this address; look for a typing error",
    407: "the proxy wants to know who asks: https_proxy=http://USER:PASSWORD@HOST:PORT",
    408: "the server gave up waiting; try again",
    410: "what was at this address is gone",
    429: "the server has too many requests; try again later",
    451: "the server may not give it, for legal reasons",
}


def open_uri(uri: str) -> ByteStream:
    """A stream of the bytes of `uri`.

    BadFile when it can't be opened, InvalidArgument when a package for its scheme is missing.
    """
    scheme = uri.partition("://")[0].lower()
    return _open_http(uri) if scheme in ("http", "https") else _open_by_fsspec(uri, scheme)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but never from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = (url.partition(":")[0].lower() for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise urllib.error.URLError(f"it leads to {new}:, which isn't followed from {old}:")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and made.host != req.host:
            made.remove_header("Authorization")
        return made


def _open_http(uri: str) -> ByteStream:
    shown, request = _request(uri)
    opener = urllib.request.build_opener(_Redirects)
    try:
        reply = opener.open(request, timeout=SILENCE_SECONDS)
        length = reply.headers.get("Content-Length")
        size = int(length) if length and length.isdigit() else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BadFile(f"{shown} can't be fetched: {_what_happened(error, request)}") from None
    file: Any = _Reply(shown, reply, size)
    return ByteStream(shown, file, size)


def _request(uri: str) -> tuple[str, urllib.request.Request]:
    """The address for errors, without its password, and the request for `uri`."""
    try:
        parts = urllib.parse.urlsplit(uri)
        user, password = parts.username, parts.password
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise InvalidArgument(f"{uri} is no address: {error}") from None
    if not parts.hostname:
        raise InvalidArgument(f"{uri} is no address: it names no host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = urllib.parse.urlunsplit(parts._replace(netloc=host + port))
    quoted = urllib.parse.quote(shown, safe="!#$%&'()*+,/:;=?@[]~")
    request = urllib.request.Request(quoted, headers={"User-Agent": "gatherd"})  # noqa: S310  # http(s) only, see open_uri
    if user is not None:
        pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
        request.add_unredirected_header(
            "Authorization", "Basic " + base64.b64encode(pair.encode()).decode()
        )
    return shown, request


def _what_happened(error: Exception, request: urllib.request.Request) -> str:
    """Explain an error of a request, and say what to do about it."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        to_do = _TO_DO.get(error.code, "")
        if error.code >= 500:
            to_do = "the server, or a proxy before it, fails; try again later"
        return f"{error.code} {error.reason}" + (f"; {to_do}" if to_do else "")
    reason = getattr(error, "reason", error)
    # urllib replaces the host of a request through a proxy by the proxy's.
    target = urllib.parse.urlsplit(request.full_url).netloc
    tunnel = getattr(request, "_tunnel_host", None)
    proxy = request.host if tunnel or request.host != target else None
    where = f"the proxy {proxy} (of http_proxy or https_proxy)" if proxy else str(request.host)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {target} isn't trusted: {reason.verify_message}; if it is of an "
            "authority of your own, name that in SSL_CERT_FILE"
        )
    if isinstance(reason, ssl.SSLError):
        return f"{where} doesn't speak TLS as we do: {reason}; is it an http:// address?"
    if isinstance(reason, socket.gaierror):
        return f"there is no host {where}: {reason.strerror}; look for a typing error"
    if isinstance(reason, ConnectionRefusedError):
        return f"{where} refuses the connection: nothing listens there"
    if isinstance(reason, TimeoutError):
        return f"{where} says nothing for {SILENCE_SECONDS} s; try again later"
    if isinstance(reason, ConnectionError):
        return f"{where} hangs up before it answers; try again"
    if isinstance(reason, http.client.HTTPException):
        return f"{where} answers with what isn't HTTP ({type(reason).__name__}: {reason})"
    if isinstance(reason, OSError) and "Tunnel connection failed" in str(reason):
        status = str(reason).removeprefix("Tunnel connection failed: ")
        to_do = _TO_DO[407] if status.startswith("407") else "may it connect there?"
        return f"{where} doesn't connect to {target}: {status}; {to_do}"
    return str(getattr(reason, "strerror", None) or reason)


class _Reply:
    """The body of a reply; turns errors into ours, and checks the length."""

    def __init__(self, name: str, reply: Any, size: int | None) -> None:
        self._name = name
        self._reply = reply
        self._size = size
        self._byte_count = 0

    def read(self, byte_count: int) -> bytes:
        try:
            data: bytes = self._reply.read(byte_count)
        except (OSError, http.client.HTTPException) as error:
            what = f"nothing came for {SILENCE_SECONDS} s" if isinstance(error, TimeoutError) else (
                f"{type(error).__name__}: {error}"
            )  # fmt: skip
            raise BadFile(
                f"{self._name} broke off after {self._byte_count} bytes ({what}); try again"
            ) from None
        self._byte_count += len(data)
        if not data and self._size is not None and self._byte_count < self._size:
            raise BadFile(
                f"{self._name} broke off after {self._byte_count} of {self._size} bytes; try again"
            )
        return data

    def close(self) -> None:
        self._reply.close()


def _open_by_fsspec(uri: str, scheme: str) -> ByteStream:
    try:
        import fsspec
    except ImportError:
        raise InvalidArgument(
            f"{uri}: reading a URI needs fsspec: pip install 'gatherd[remote]'"
        ) from None
    try:
        file_system, path = fsspec.core.url_to_fs(uri)
        file = file_system.open(path, "rb")
        size = file_system.size(path)
    except (ImportError, ValueError) as error:
        raise InvalidArgument(
            f"{uri}: fsspec can't open {scheme}:// here: {error} "
            "(pip install 'gatherd[remote]' and the package for the scheme)"
        ) from None
    except FileNotFoundError as error:
        # Some packages raise it for any failure, with the real one as the cause.
        cause = error.__cause__
        if cause is None or isinstance(cause, FileNotFoundError) or _status_of(cause) == 404:
            raise BadFile(f"{uri} isn't there") from None
        raise BadFile(f"{uri} can't be opened: {type(cause).__name__}: {cause}") from None
    except PermissionError as error:
        raise BadFile(
            f"{uri} may not be read: {error}; give the credentials as the package for {scheme}:// "
            "wants them"
        ) from None
    except IsADirectoryError:
        raise BadFile(f"{uri} is a folder; name a file in it") from None
    except Exception as error:  # noqa: BLE001  # each scheme's package has errors of its own
        raise BadFile(f"{uri} can't be opened: {type(error).__name__}: {error}") from None
    remote: Any = _Remote(uri, file)
    return ByteStream(uri, remote, size)


def _status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp (`status`) or botocore (`response`), if any."""
    status = getattr(error, "status", None)
    if status is None and isinstance(response := getattr(error, "response", None), dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


class _Remote:
    """A file of fsspec's; turns its errors into ours."""

    def __init__(self, uri: str, file: Any) -> None:
        self._uri = uri
        self._file = file

    def read(self, byte_count: int) -> bytes:
        try:
            data: bytes = self._file.read(byte_count)
        except Exception as error:  # noqa: BLE001  # each scheme's package has errors of its own
            raise BadFile(f"{self._uri} broke off: {type(error).__name__}: {error}") from None
        return data

    def close(self) -> None:
        self._file.close()
