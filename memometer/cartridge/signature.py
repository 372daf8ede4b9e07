"""Signatures: whose a cartridge is. Sums of its content prove no origin, for who changes a file can sum it again.

openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memometer.cartridge.container import CartridgeError

_CONTEXT = b"adaptive-memory cartridge\0"  # what is signed for this is nothing elsewhere
_BYTES = 32 + 64


def signer(key: Path) -> Callable[[bytes], bytes]:
    """What signs a manifest with the Ed25519 key of a PEM file: the public key, then the signature."""
    serialization, ed25519 = _library()
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise CartridgeError(
            f"{key} holds no key that can be read; name an Ed25519 key in PEM, without a password"
        ) from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise CartridgeError(f"{key} holds a key of another kind; make one with openssl genpkey -algorithm ed25519.")
    public = private.public_key().public_bytes_raw()
    return lambda manifest: public + private.sign(_CONTEXT + manifest)


def check(manifest: bytes, signature: bytes | None, *, public_key: Path | None = None) -> str:
    """Who signed a manifest, as 64 hex digits; "" where nobody did, or where
    that cannot be checked because the library is not installed.

    Raises CartridgeError for a signature of something else and, where `public_key` names a PEM file, for any that is
    not of that key.
    """
    if signature is None:
        if public_key:
            raise CartridgeError("it is not signed")
        return ""
    if len(signature) != _BYTES:
        raise CartridgeError("its signature is no signature")
    signed_by, signed = signature[:32], signature[32:]
    try:
        serialization, ed25519 = _library()
    except CartridgeError:
        if public_key:
            raise
        return ""
    from cryptography.exceptions import InvalidSignature

    if public_key and signed_by != _public(public_key, serialization, ed25519):
        raise CartridgeError(f"it is signed by {signed_by.hex()[:16]}…, which is not the key of {public_key}")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(signed_by).verify(signed, _CONTEXT + manifest)
    except (InvalidSignature, ValueError) as error:
        raise CartridgeError("its signature is of another content") from error
    return signed_by.hex()


def _public(path: Path, serialization: Any, ed25519: Any) -> bytes:
    try:
        public = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CartridgeError(f"{path} holds no public key that can be read; name an Ed25519 key in PEM") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise CartridgeError(f"{path} holds a key of another kind; name an Ed25519 key in PEM")
    raw: bytes = public.public_bytes_raw()
    return raw


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise CartridgeError(
            "signatures need the cryptography library; pip install -c constraints.txt '.[signatures]'"
        ) from error
    return serialization, ed25519
