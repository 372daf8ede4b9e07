"""Ed25519 signatures of cartridges. They prove the origin, which digests cannot: anybody can compute a digest again.

openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memometer.cartridge.container import CartridgeError

_CONTEXT = b"adaptive-memory cartridge\0"  # so that a signature is valid for nothing else
_BYTES = 32 + 64


def signer(key: Path) -> Callable[[bytes], bytes]:
    """Return a function that signs a manifest: it returns the public key and the signature.

    Args:
        key: PEM file of an Ed25519 private key without a password.

    Raises:
        CartridgeError: the key cannot be read or has another type, or the package cryptography is missing.
    """
    serialization, ed25519 = _library()
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise CartridgeError(
            f"cannot read a private key from {key}; name an Ed25519 key in PEM format without a password"
        ) from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise CartridgeError(f"{key} is not an Ed25519 key; create one with openssl genpkey -algorithm ed25519")
    public = private.public_key().public_bytes_raw()
    return lambda manifest: public + private.sign(_CONTEXT + manifest)


_P = 2**255 - 19
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
"""The y coordinate of points of order 8 on the curve; its negative is the other one."""


def check(manifest: bytes, signature: bytes | None, *, public_key: Path | None = None) -> str:
    """Verify the signature of a manifest.

    Args:
        manifest: content of the manifest.
        signature: content of the signature entry; None if there is none.
        public_key: PEM file of an Ed25519 public key; a signature of this key is then required.

    Returns:
        The signer's public key in hexadecimal. Empty if there is no signature, or if no key is required and the package
        cryptography is missing.

    Raises:
        CartridgeError: the signature is missing, malformed, of another key or of other content.
    """
    if signature is None:
        if public_key:
            raise CartridgeError("it is not signed")
        return ""
    if len(signature) != _BYTES:
        raise CartridgeError("malformed signature")
    signed_by, signed = signature[:32], signature[32:]
    if _is_of_small_order(signed_by):
        raise CartridgeError("its key is one with which anybody can sign anything")
    try:
        serialization, ed25519 = _library()
    except CartridgeError:
        if public_key:
            raise
        return ""
    from cryptography.exceptions import InvalidSignature

    if public_key and signed_by != _public(public_key, serialization, ed25519):
        raise CartridgeError(f"it is signed with the key {signed_by.hex()[:16]}… instead of {public_key}")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(signed_by).verify(signed, _CONTEXT + manifest)
    except (InvalidSignature, ValueError) as error:
        raise CartridgeError("its signature does not match its content") from error
    return signed_by.hex()


def _is_of_small_order(key: bytes) -> bool:
    """Return True for the few public keys for which a signature exists that is valid for every content (RFC 8032)."""
    y = (int.from_bytes(key, "little") & (2**255 - 1)) % _P
    return y in (0, 1, _P - 1, _Y8, _P - _Y8)


def _public(path: Path, serialization: Any, ed25519: Any) -> bytes:
    try:
        public = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CartridgeError(f"cannot read a public key from {path}; name an Ed25519 key in PEM format") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise CartridgeError(f"{path} is not an Ed25519 public key in PEM format")
    raw: bytes = public.public_bytes_raw()
    return raw


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise CartridgeError("signatures need the package cryptography; run pip install cryptography") from error
    return serialization, ed25519
