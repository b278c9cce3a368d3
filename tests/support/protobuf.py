"""Writes the Python modules of the `.proto` files: `make proto`.

The modules get a descriptor pool of their own. Every client of the Open Inference Protocol has messages of the same names, and a
second one in protobuf's default pool is an error: code of a model could not import such a client.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "serve_app/protocols/grpc"
NAMES = ("health", "open_inference")
PYTHON = os.environ.get("PROTOC_PYTHON") or sys.executable
"""An environment with grpcio-tools in the version of requirements/dev.txt."""
_DEFAULT = "DESCRIPTOR = _descriptor_pool.Default().AddSerializedFile("
_PRIVATE = "DESCRIPTOR = _descriptor_pool.DescriptorPool().AddSerializedFile("


def generate(folder: Path) -> None:
    """Write `NAME_pb2.py` and `NAME_pb2.pyi` into `folder`."""
    files = [f"{name}.proto" for name in NAMES]
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi")]
    subprocess.run([PYTHON, "-m", "grpc_tools.protoc", f"-I{FOLDER}", *outputs, *files], check=True)
    for name in NAMES:
        module = folder / f"{name}_pb2.py"
        text = module.read_text()
        assert text.count(_DEFAULT) == 1
        module.write_text(text.replace(_DEFAULT, _PRIVATE))


if __name__ == "__main__":
    generate(FOLDER)
