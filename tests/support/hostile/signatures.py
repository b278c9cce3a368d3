"""Bundles whose signature of a publisher is missing or wrong."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from serve_app.artifacts.manifest import describe, sha256
from serve_app.artifacts.names import JOBLIB, ONNX, SEAL
from tests.support.hostile.cases import VERSION, Case, case, good, put
from tests.support.hostile.pickles import traps
from tests.support.models import bundle_manifest


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public one, as PEM files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def badly_sealed(canary: Path, sign: Callable[[str], bytes], stranger: Callable[[str], bytes]) -> Iterator[Case]:
    """Bundles with right digests and a pickle, for replicas that serve signed ones only."""
    files, _ = good()
    del files[ONNX]
    files[JOBLIB] = traps(canary)["open"]
    manifest = describe(files, bundle_manifest(version=VERSION))
    digest = sha256(manifest)
    right = sign(digest)

    def sealed(seal: bytes | None) -> Callable[[Path], str]:
        return lambda root: put(root, files if seal is None else {**files, SEAL: seal}, manifest)

    plain = base64.b64decode(right)
    seals: dict[str, bytes | None] = {
        "none": None,
        "empty": b"",
        "a stranger's": stranger(digest),
        "of another bundle": sign(sha256(b"another")),
        "the digest": digest.encode(),
        "zeros": base64.b64encode(bytes(64)),
        "not base64": b"\xff" * 64,
        "twice": right + right,
        "raw": plain,
        "cut": right[:40],
        "the public digest in hex": plain.hex().encode(),
    }
    seals |= {f"flipped at {at}": base64.b64encode(plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :]) for at in range(64)}
    for name, seal in seals.items():
        yield case(f"seal: {name}", "unsigned", sealed(seal))
    yield case("seal: too large", "digest", sealed(right * 100))

    def linked(root: Path) -> str:
        pointer = put(root, files, manifest)
        (root / pointer / SEAL).symlink_to("/etc/passwd")
        return pointer

    yield case("seal: leads away", "unreadable", linked)
