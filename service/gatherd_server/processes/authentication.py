"""Whether a server may start on the addresses that it was given, by how it knows its clients."""

from gatherd_server.access.tls import Tls
from gatherd_server.access.token_file import TokenFile
from gatherd_server.access.web import ANY_ORIGIN
from gatherd_server.errors import ConfigError
from gatherd_server.settings import ServeSettings


def check_secrets(settings: ServeSettings) -> bool:
    """Whether the server authenticates its clients, or may do without.

    ConfigError for tokens and certificates that the workers couldn't use.
    """
    if settings.tokens is not None:
        TokenFile(settings.tokens)
    files = settings.tls_files()
    if files is not None:
        Tls(files)
    if settings.tokens is not None and settings.insecure:
        raise ConfigError("insecure means without tokens, and tokens are given; leave one out")
    web = settings.web()
    if ANY_ORIGIN in web.cors_origins and settings.tokens is None and not settings.insecure:
        raise ConfigError(
            "cors_origins * lets a page of any site change and delete tables by the browser of "
            "whoever looks at it: give --tokens FILE too, or name the origins, or give --insecure"
        )
    return settings.tokens is not None or settings.tls_client_ca is not None or settings.insecure
