"""Messages that would take many times their size in memory. `python -m tests.support.message_bombs NAME` decodes one of them.

It prints the megabytes by which the memory of the process grew at most, and the error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import InvalidInput
from serve_app.protocols.grpc.wire import field, varint
from tests.support.calls import MODEL, message_codec

SIZE = 16 * 1024 * 1024
_LEFT = SIZE - 200


def _message(contents: bytes, datatype: bytes) -> bytes:
    shape = field(3, varint(1000))
    return field(1, MODEL.encode()) + field(5, field(1, b"x") + field(2, datatype) + shape + field(5, contents))


BOMBS: dict[str, Callable[[], bytes]] = {
    "inputs": lambda: b"\x2a\x00" * (SIZE // 2),
    "outputs": lambda: b"\x32\x00" * (SIZE // 2),
    "raw contents": lambda: b"\x3a\x00" * (SIZE // 2),
    "parameters": lambda: b"".join(field(4, field(1, b"%07d" % at)) for at in range(SIZE // 11)),
    "shape": lambda: field(5, field(3, b"\0" * _LEFT)),
    "texts": lambda: _message(b"\x42\x00" * (_LEFT // 2), b"BYTES"),
    "packed numbers": lambda: _message(field(3, b"\0" * _LEFT), b"INT64"),
    "single numbers": lambda: _message(b"\x18\x00" * (_LEFT // 2), b"INT64"),
    "flags": lambda: _message(field(1, b"\0" * _LEFT), b"BOOL"),
    "raw": lambda: _message(b"", b"FP64") + field(7, b"\0" * _LEFT),
}


def _kilobytes(name: str) -> int:
    """A line of /proc/self/status: VmRSS, or VmHWM, which is the highest VmRSS since it was cleared."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def main() -> None:
    """Decode one message."""
    message = BOMBS[sys.argv[1]]()
    codec = message_codec(Signature((Feature("x"),), "regression"), max_rows=100_000)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    try:
        codec.decode(message, [])
        error = ""
    except InvalidInput as refused:
        error = type(refused).__name__
    print((_kilobytes("VmHWM") - before) // 1024, error)


if __name__ == "__main__":
    main()
