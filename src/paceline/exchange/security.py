"""Who may talk to the processes of a cluster: a token in every call, and TLS with certificates on both sides."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Any

import pyarrow.flight as fl

_HEADER = "authorization"


@dataclass(frozen=True, slots=True)
class Security:
    """token: a shared secret, or None; cert, key, ca: PEM text of this process's certificate, its key, and of the
    authority that signed everybody's, or all None for no encryption; hostname: that certificates are of, if not of the
    address; inner: what the job's own processes know, and who merely reads its rows does not."""

    token: str | None = field(default=None, repr=False)
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    ca: bytes | None = None
    hostname: str | None = None
    inner: str = field(default="", repr=False)

    @property
    def scheme(self) -> str:
        return "grpc+tls" if self.cert is not None else "grpc+tcp"

    def check(self, said: dict[str, Any]) -> None:
        """Raises FlightUnauthorizedError if a message is not of one of the job's own processes."""
        if not hmac.compare_digest(str(said.get("inner", "")).encode(), self.inner.encode()):
            raise fl.FlightUnauthorizedError("only the job's own processes may ask for this")

    def server(self) -> dict[str, Any]:
        """Options of a Flight server: it refuses callers without the token, and without a certificate of the
        authority."""
        options: dict[str, Any] = {}
        if self.token is not None:
            options["middleware"] = {"token": _AskToken(self.token)}
        if self.cert is not None:
            options |= {
                "tls_certificates": [(self.cert, self.key)],
                "verify_client": True,
                "root_certificates": self.ca,
            }
        return options

    def connect(self, address: str) -> Any:
        """A Flight client of `address`, such as 10.0.0.7:41234."""
        options: dict[str, Any] = {}
        if self.token is not None:
            options["middleware"] = [_GiveToken(self.token)]
        if self.cert is not None:
            options |= {"tls_root_certs": self.ca, "cert_chain": self.cert, "private_key": self.key}
            if self.hostname is not None:
                options["override_hostname"] = self.hostname
        # Messages are as large as a batch's rows are.
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        # A connection of its own: one that is shared stays stalled for long after a cut network is mended.
        limits.append(("grpc.use_local_subchannel_pool", 1))
        return fl.FlightClient(f"{self.scheme}://{address}", generic_options=limits, **options)


class _Nothing(fl.ServerMiddleware):  # type: ignore[misc]
    """A call that was let through."""


class _AskToken(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> Any:
        given = next((v for name, values in headers.items() if name.lower() == _HEADER for v in values), "")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._wanted):
            raise fl.FlightUnauthenticatedError("no token or a wrong one: give cluster.security.token")
        return _Nothing()


class _Told(fl.ClientMiddleware):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token

    def sending_headers(self) -> dict[str, str]:
        return {_HEADER: f"Bearer {self._token}"}


class _GiveToken(fl.ClientMiddlewareFactory):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token

    def start_call(self, info: Any) -> Any:
        return _Told(self._token)
