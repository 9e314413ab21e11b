"""Machines on a switch, made of Linux network namespaces, whose links can be cut without anybody being told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from types import TracebackType

_NOBODY = "02:00:00:ff:ff:ff"  # an address that no machine has: the switch drops what is sent to it
NEEDED = "network namespaces are not allowed here: ip netns (iproute2) needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN"


def allowed() -> bool:
    """Whether namespaces, pairs of interfaces and a bridge can be made here."""
    name = f"paceline-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    try:
        _ip("-n", name, "link", "add", "switch", "type", "bridge")
        _ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other")
    except subprocess.CalledProcessError:
        return False
    finally:
        _ip("netns", "del", name)
    return True


class Network:
    """`count` machines, 0 to count - 1, of addresses 10.77.0.1 and up. Use as a context manager: at its end all
    processes in it are killed and it is gone.

    The switch is a namespace of its own, so the network of this machine is left as it is. Packets that a cut takes
    vanish, as with a broken cable behind a switch: no interface goes down, no connection is reset.
    """

    def __init__(self, count: int) -> None:
        self.addresses = [f"10.77.0.{i + 1}" for i in range(count)]
        self._names = [f"paceline-{os.getpid()}-{i}" for i in range(count)]
        self._switch = f"paceline-{os.getpid()}-switch"

    def __enter__(self) -> Network:
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "switch", "up")
            for i, (name, address) in enumerate(zip(self._names, self.addresses, strict=True)):
                _ip("netns", "add", name)
                peer = ("peer", "name", f"port{i}", "netns", self._switch)
                _ip("-n", name, "link", "add", "eth0", "type", "veth", *peer)
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                for interface in ("lo", "eth0"):
                    _ip("-n", name, "link", "set", interface, "up")
                _ip("-n", self._switch, "link", "set", f"port{i}", "master", "switch")
                _ip("-n", self._switch, "link", "set", f"port{i}", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def inside(self, machine: int, *command: str) -> list[str]:
        """The command line that runs `command` on a machine."""
        direct = (f"--unset={name}" for name in os.environ if name.lower().endswith("_proxy"))  # there is no way out
        return ["ip", "netns", "exec", self._names[machine], "env", *direct, *command]

    def cut(self, one: int, other: int) -> None:
        """Packets between these two vanish; both still reach everybody else."""
        for here, there in ((one, other), (other, one)):
            to = (self.addresses[there], "dev", "eth0")
            _ip("-n", self._names[here], "neighbour", "replace", *to, "lladdr", _NOBODY, "nud", "permanent")

    def mend(self, one: int, other: int) -> None:
        """What `cut` broke."""
        for here, there in ((one, other), (other, one)):
            _ip("-n", self._names[here], "neighbour", "del", self.addresses[there], "dev", "eth0")

    def isolate(self, machine: int) -> None:
        """It reaches nobody any more; its own interface stays up."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "nomaster")

    def rejoin(self, machine: int) -> None:
        """What `isolate` broke."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "master", "switch")

    def close(self) -> None:
        """Kill what runs on the machines, and take them away."""
        for name in (*self._names, self._switch):
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
