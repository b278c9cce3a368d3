"""The Python modules of the `.proto` files are those that the compiler writes, and get along with those of other packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from serve_app.protocols.grpc import health_pb2, open_inference_pb2
from tests.support.protobuf import FOLDER, NAMES, PYTHON, generate


def has_compiler() -> bool:
    return subprocess.run([PYTHON, "-c", "import grpc_tools"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_compiler(), reason="grpcio-tools is not installed; PROTOC_PYTHON names an environment that has it")
def test_the_modules_are_those_of_the_proto_files(tmp_path: Path) -> None:
    generate(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(written) == {f"{name}_pb2.{kind}" for name in NAMES for kind in ("py", "pyi")}
    for name, text in written.items():
        assert (FOLDER / name).read_text() == text, f"{name} is not up to date: make proto"


def test_a_client_of_the_protocol_can_be_imported_beside_the_server() -> None:
    for module in (open_inference_pb2, health_pb2):
        content = module.DESCRIPTOR.serialized_pb
        changed = content.replace(b"GRPCInferenceService", b"GRPCInferenceServicf")  # another file with the same messages
        descriptor_pool.DescriptorPool().AddSerializedFile(changed)
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindFileByName(module.DESCRIPTOR.name)
