"""Certificates of both ports, read again when they change.

TLS 1.2 and up, with the ciphers that OpenSSL and gRPC consider safe. Left out on purpose: names in
client certificates. Any client with a certificate of the given authorities may connect; its token
decides what it may do.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from gatherd_server.errors import ConfigError

logger = logging.getLogger("gatherd.tls")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's chain and key, and the clients' authorities, None for any client."""

    cert: Path
    key: Path
    client_ca: Path | None


class Tls:
    """The encryption of both ports."""

    def __init__(self, files: TlsFiles) -> None:
        """ConfigError when a file can't be read, or the key isn't the certificate's."""
        self._files = files
        self._read = _contents(files)
        self._grpc_read = self._read
        self.context = _context(files)
        """For HTTP; connections made after a `refresh` use the files that it read."""

    def refresh(self) -> None:
        """Read the files again if they changed. Unusable ones change nothing but the log."""
        try:
            now = _contents(self._files)
            if now == self._read:
                return
            _context(self._files)  # tested before use: a renewal may be half done
            self.context.load_cert_chain(self._files.cert, self._files.key)
            if self._files.client_ca is not None:
                self.context.load_verify_locations(self._files.client_ca)
        except (ConfigError, OSError) as error:
            logger.error(  # noqa: TRY400 - what is wrong is all in the message
                "the certificates stay as they were: %s", error
            )
            return
        self._read = now
        logger.info("%s was read again", self._files.cert)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For gRPC; connections made after a `refresh` use the files that it read."""
        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(self._read),
            self._fetch,  # type: ignore[arg-type]  # None says that it is the same as before
            require_client_authentication=self._files.client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        if self._grpc_read is self._read:
            return None
        self._grpc_read = self._read
        return _grpc_configuration(self._read)


_Contents = tuple[bytes, bytes, bytes | None]


def _contents(files: TlsFiles) -> _Contents:
    try:
        ca = files.client_ca.read_bytes() if files.client_ca is not None else None
        return files.cert.read_bytes(), files.key.read_bytes(), ca
    except OSError as error:
        raise ConfigError(f"{error.filename} can't be read: {error.strerror or error}") from None


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{files.cert} and {files.key} can't be used for TLS: {error}; they have to be PEM, "
            "the key without a password and the certificate's own"
        ) from None
    return context


def _no_password() -> str:
    # OpenSSL would ask for it on the terminal, and wait.
    raise ValueError("the key has a password")


def _grpc_configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    cert, key, ca = contents
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)
