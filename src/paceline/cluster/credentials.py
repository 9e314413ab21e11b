"""The secrets and certificates that `cluster.security` names, read where the command runs."""

from __future__ import annotations

import os
import secrets
import ssl
from pathlib import Path

from paceline.clusterconfig import ClusterConfig, TlsConfig
from paceline.errors import ConfigError
from paceline.exchange.security import Security


def read_security(config: ClusterConfig, base: Path) -> Security:
    """The secrets that the configuration names. base: what their paths are relative to. Raises ConfigError naming the
    key: for what is not there, is empty, or is no token or certificate."""
    token, tls = _token(config.security.token, base), config.security.tls
    inner = secrets.token_hex(16)
    if tls is None:
        return Security(token, inner=inner)
    cert, key, ca = (_read(f"tls.{name}", getattr(tls, name), base) for name in ("cert", "key", "ca"))
    _check_tls(tls, base)
    return Security(token, cert, key, ca, tls.hostname, inner)


def _token(given: str | None, base: Path) -> str | None:
    if given is None:
        return None
    token = given
    if given.startswith("env:"):
        name = given.removeprefix("env:")
        token = os.environ.get(name, "")
        if not token:
            raise ConfigError(
                f"cluster.security.token: the environment variable {name!r} is not set; export it where the command"
                " runs"
            )
    elif given.startswith("file:"):
        token = _read("token", given.removeprefix("file:"), base).decode("ascii", "replace").strip()
    if not token:
        where = "" if given == "" else f" in {given}"
        raise ConfigError(
            f"cluster.security.token: it is empty{where}; give a secret, env:NAME or file:PATH, or leave it out"
        )
    if not (token.isascii() and token.isprintable()):  # it travels in a header; the secret itself is not told
        raise ConfigError(
            "cluster.security.token: it may have printable ASCII characters only; make one with `openssl rand -hex 32`"
        )
    return token


def _read(key: str, path: str, base: Path) -> bytes:
    try:
        return (base / path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cluster.security.{key}: {path!r} cannot be read ({error.strerror}); paths are relative to the"
            " configuration file"
        ) from None


def _check_tls(tls: TlsConfig, base: Path) -> None:
    """Raise ConfigError unless the files are a certificate, its key, and an authority: gRPC would only say, in every
    process, that nobody answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(base / tls.cert, base / tls.key, password=lambda: b"")  # nobody is there to be asked
    except ssl.SSLError as error:
        raise ConfigError(
            f"cluster.security.tls: {tls.cert!r} and {tls.key!r} are no certificate and its key in PEM, without a"
            f" passphrase ({error.reason or error})"
        ) from None
    try:
        context.load_verify_locations(base / tls.ca)
    except ssl.SSLError as error:
        raise ConfigError(
            f"cluster.security.tls.ca: {tls.ca!r} is no certificate in PEM ({error.reason or error})"
        ) from None
