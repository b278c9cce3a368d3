"""What the processes of a running application listen on, and what their environments hold, as Linux shows it in /proc."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import of_session

PROC = Path("/proc")
LISTENING = "0A"


class Listener(NamedTuple):
    """A TCP socket on which a process listens: address, port, and the command line of the process."""

    address: str
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine reaches it; `::ffff:127.0.0.1` is 127.0.0.1."""
        address = ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return (mapped or address).is_loopback


def listeners(session: int) -> list[Listener]:
    """Every TCP socket on which a process of the session listens."""
    owners = {inode: command for pid, command in of_session(session).items() for inode in _sockets(pid)}
    rows = [line.split() for table in ("tcp", "tcp6") for line in (PROC / "net" / table).read_text().splitlines()[1:]]
    return [
        Listener(_address(row[1].partition(":")[0]), int(row[1].partition(":")[2], 16), owners[row[9]])
        for row in rows
        if row[3] == LISTENING and row[9] in owners
    ]


def commands_with(session: int, text: str) -> list[str]:
    """Command lines of the processes that the first one of the session has started with `text` in environment or arguments."""
    return [
        command
        for pid, command in of_session(session).items()
        if pid != session and (text in command or text.encode() in (PROC / str(pid) / "environ").read_bytes())
    ]


def _sockets(pid: int) -> Iterator[str]:
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def _address(text: str) -> str:
    """The kernel writes each four bytes of an address as a hexadecimal number in the machine's byte order."""
    raw = bytes.fromhex(text)
    raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return str(IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw))
