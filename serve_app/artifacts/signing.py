"""The seal of a bundle: an Ed25519 signature by the trainer over the bundle's digest, kept beside the manifest.

A digest proves that no byte was damaged. The seal proves that the holder of the private key published the bundle. The digest
covers the manifest, which holds the size and sha256 of every file, so one seal covers every byte.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from serve_app.errors import IrisApiError

MAX_SEAL_BYTES = 1024

Sign = Callable[[str], bytes]
"""Returns the bytes of the seal for a digest."""
Verify = Callable[[str, bytes | None], bool]
"""Returns whether the seal of a digest exists and is valid."""

_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class SigningError(IrisApiError):
    """A file is not a usable key; the message names the file and the command that creates a key."""


def signer(file: Path) -> Sign:
    """A function that seals with the private key in a PEM file; raises SigningError."""
    private = _private_key(file)
    return lambda digest: base64.b64encode(private.sign(_message(digest))) + b"\n"


def verifier(file: Path) -> Verify:
    """A function that accepts the seal of any public key in a PEM file, so keys can be rotated; raises SigningError."""
    try:
        keys = [load_pem_public_key(block) for block in _BLOCK.findall(_read(file))]
    except (ValueError, UnsupportedAlgorithm):
        keys = []
    trusted = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not trusted or len(trusted) != len(keys):
        raise SigningError(f"{file} is not an Ed25519 public key; create it: openssl pkey -in PRIVATE.pem -pubout -out {file}")
    return lambda digest, seal: seal is not None and any(_is_right(key, digest, seal) for key in trusted)


def own_verifier(file: Path) -> Verify:
    """A function that verifies the seals of `signer` with the private key in a PEM file; raises SigningError."""
    public = _private_key(file).public_key()
    return lambda digest, seal: seal is not None and _is_right(public, digest, seal)


def _private_key(file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{file} is not an Ed25519 private key; create one: openssl genpkey -algorithm ed25519 -out {file}")
    return key


def _is_right(key: Ed25519PublicKey, digest: str, seal: bytes) -> bool:
    try:
        key.verify(base64.b64decode(seal.strip(), validate=True), _message(digest))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _message(digest: str) -> bytes:
    return b"iris-api bundle " + digest.encode()  # the prefix keeps other signatures of this key from being valid seals


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SigningError(f"{file} cannot be read ({error.strerror})") from None
