"""TLS of the connections of a process, from its settings: what cannot be used is named before anything is sent."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, Literal

from perdure.errors import SetupError
from perdure.settings import Settings

Server = Literal["nats", "postgres", "redis"]
SYSTEM: Final = "system"  # PERDURE_TLS_CA=system: the authorities that the operating system trusts


def client_context(settings: Settings, server: Server) -> ssl.SSLContext | None:
    """How to speak with `server`: nothing without `PERDURE_TLS_CA`, or when `PERDURE_TLS_FOR` leaves it out.

    The server's certificate is always checked, with its host name. Reads files. Raises `SetupError` naming the
    variable and the file.
    """
    if settings.tls_ca is None or server not in settings.tls_for_servers:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_ca == SYSTEM:
        context.load_default_certs()
    else:
        trust(context, Path(settings.tls_ca), "PERDURE_TLS_CA")
    own_certificate(context, settings.tls_cert, settings.tls_key, "PERDURE_TLS")
    return context


def server_context(certificate: Path, key: Path | None, clients: Path | None, prefix: str) -> ssl.SSLContext:
    """How an HTTP server answers: with `certificate`, and for `clients`, a CA, only those who have one of it.

    Reads files. Raises `SetupError` naming the variable, which begins with `prefix`, and the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    own_certificate(context, certificate, key, prefix)
    if clients is not None:
        trust(context, clients, f"{prefix}_CLIENT_CA")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def trust(context: ssl.SSLContext, file: Path, variable: str) -> None:
    """Believe certificates of the authorities in `file`. Raises `SetupError`."""
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise SetupError(f"{variable}={file} is no certificate in PEM: it begins with BEGIN CERTIFICATE") from None
    except OSError as error:
        raise SetupError(f"{variable}={file} cannot be read: {error.strerror or error}") from None


def own_certificate(context: ssl.SSLContext, certificate: Path | None, key: Path | None, prefix: str) -> None:
    """Show `certificate`, whose key is `key` (or in the same file). Raises `SetupError`."""
    if certificate is None:
        if key is not None:
            raise SetupError(f"{prefix}_KEY={key} is given without {prefix}_CERT, the certificate of that key")
        return
    named = f"{prefix}_CERT={certificate}" + (f" with {prefix}_KEY={key}" if key else "")
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        why = "the key is not the one of the certificate" if error.reason == "KEY_VALUES_MISMATCH" else _WRONG
        raise SetupError(f"{named} cannot be used: {why}") from None
    except OSError as error:
        missing = next((each for each in (certificate, key) if each is not None and not each.is_file()), None)
        what = f"there is no file {missing}" if missing else (error.strerror or str(error))
        raise SetupError(f"{named} cannot be used: {what}") from None


_WRONG: Final = "both are PEM files, the key without a password (BEGIN CERTIFICATE, BEGIN PRIVATE KEY)"


def _no_password() -> str:
    """Without this OpenSSL would ask at the terminal for the password of a key."""
    return ""
