"""Checks of the installed packages, in this environment or another one.

The packages' metadata are read from their files. Nothing is imported, so the checks take no time and also explain an
environment whose packages cannot be imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from memometer.train.arbor_request import VERSION, Problem
from memometer.train.local_model import INSTALL, PACKAGES

ARBOR = "arbor-ai"
CHECKED = ("arbor-ai", "trl", "vllm", "transformers", "peft", "accelerate", "deepspeed", "dspy", "datasets")
"""Packages whose requirements are compared with the installed versions."""
CRITICAL = {*CHECKED, "torch", "openai"}
"""Packages whose version decides if the others can be imported."""


class Environment:
    """The packages in a list of site-packages folders; None for this process's own."""

    def __init__(self, folders: list[str] | None = None) -> None:
        self.folders = folders if folders is not None else [path for path in sys.path if path]
        self.is_current = folders is None

    @classmethod
    def at(cls, path: Path) -> Environment:
        """Return a virtual environment, or a site-packages folder. Raises FileNotFoundError for another folder."""
        found = [path] if list(path.glob("*.dist-info")) else []
        found += sorted([*path.glob("lib*/python3*/site-packages"), *path.glob("Lib/site-packages")])
        if not found:
            raise FileNotFoundError(f"{path} is not a virtual environment: it has no lib/python3*/site-packages")
        return cls([str(folder) for folder in found])

    @cached_property
    def packages(self) -> dict[str, metadata.Distribution]:
        """The packages by canonical name."""
        found: dict[str, metadata.Distribution] = {}
        for package in metadata.distributions(path=self.folders):
            if name := package.metadata["Name"]:
                found.setdefault(canonicalize_name(name), package)
        return found

    @property
    def python(self) -> str:
        """The Python version, such as 3.11; empty if the folder names do not show it."""
        if self.is_current:
            return f"{sys.version_info.major}.{sys.version_info.minor}"
        match = re.search(r"python(3\.\d+)", self.folders[0])
        return match[1] if match else ""

    def version(self, name: str) -> str | None:
        """Return the installed version of a package, or None."""
        package = self.packages.get(canonicalize_name(name))
        return package.version if package else None

    def file(self, path: str) -> Path | None:
        """Return a file by its path in site-packages, or None."""
        return next((Path(f) / path for f in self.folders if (Path(f) / path).is_file()), None)

    def conflicts(self) -> Iterator[Problem]:
        """Yield the requirements of CHECKED packages, without extras, that the installed versions do not meet."""
        for name in CHECKED:
            package = self.packages.get(name)
            for requirement in _requirements(package) if package else ():
                marker, installed = requirement.marker, self.version(requirement.name)
                if marker and not marker.evaluate({"extra": "", "python_version": self.python}):
                    continue
                if installed is None or requirement.specifier.contains(installed, prereleases=True):
                    continue
                wanted = f"{requirement.name}{requirement.specifier}"
                yield Problem(
                    f"{name} {self.version(name)} needs {wanted}, and {installed} is installed",
                    f"pip install '{wanted}'",
                    fatal=canonicalize_name(requirement.name) in CRITICAL,
                )


def arbor_problems(found: Environment, *, training_gpus: int) -> Iterator[Problem]:
    """Yield the problems that keep an installed Arbor from training."""
    version = found.version(ARBOR)
    if found.version("arbor"):
        yield Problem(
            "the package arbor is installed, which is a neuron simulator"
            + (" and has overwritten files of arbor-ai" if version else ""),
            f"pip uninstall arbor && pip install --force-reinstall --no-deps {ARBOR}=={VERSION}",
        )
    if version is None:
        return
    if version != VERSION:
        yield Problem(
            f"{ARBOR} {version} is installed; only {VERSION} was tested with memometer",
            f"pip install {ARBOR}=={VERSION}",
        )
    if found.python and not (3, 11) <= tuple(map(int, found.python.split("."))) < (3, 14):
        yield Problem(f"{ARBOR} does not support Python {found.python}", "use 3.11, 3.12 or 3.13")
    if _at_least(found.version("transformers"), "5"):
        yield Problem(
            f"transformers {found.version('transformers')} breaks trl {found.version('trl') or '0.23.1'}, which Arbor "
            f"{VERSION} needs",
            "pip install 'transformers>=4.53.2,<5'",
        )
    for name in ("vllm", "trl", "transformers", "peft", "deepspeed", "wandb"):
        if found.version(name) is None:
            yield Problem(
                f"{ARBOR} is installed without {name}, which its server imports",
                "create an environment from arbor/requirements.txt",
            )
    yield from _deepspeed_problems(found, training_gpus)


def _deepspeed_problems(found: Environment, training_gpus: int) -> Iterator[Problem]:
    config = found.file("configs/deepspeed_config.yaml")
    if config is None:
        folder = f"{found.folders[0]}/configs"
        yield Problem(
            f"configs/deepspeed_config.yaml is missing, because the wheel of {ARBOR} lacks it; no training can start",
            f"mkdir -p {folder} && cp arbor/deepspeed_config.yaml {folder}/",
        )
        return
    text, remedy = config.read_text(errors="replace"), f"cp arbor/deepspeed_config.yaml {config}"
    if training_gpus > 1 and not re.search(r"^\s*zero_stage:\s*[123]\b", text, re.MULTILINE):
        yield Problem(
            f"{config} has no sharding: each of the {training_gpus} training GPUs would need the complete model",
            remedy,
            fatal=False,
        )
    if not re.search(r"^mixed_precision:\s*['\"]?bf16", text, re.MULTILINE):
        yield Problem(f"{config} lacks mixed_precision: bf16", remedy)


def trl_problems(
    found: Environment, *, quantize: bool, attn: str | None, unsloth: bool, gpu: bool
) -> Iterator[Problem]:
    """Yield the problems that keep TRL on this machine from training."""
    if missing := [name for name in PACKAGES if not found.version(name)]:
        yield Problem(f"--backend trl needs {', '.join(missing)}", INSTALL)
    trl, torch = found.version("trl"), found.version("torch")
    if found.version(ARBOR) and trl:
        yield Problem(
            f"{ARBOR} and trl are in one environment, and {ARBOR} needs another trl", "give each its own environment"
        )
    if trl and not _at_least(trl, "1"):
        yield Problem(f"trl {trl} is too old for --backend trl", INSTALL)
    if torch and gpu and "+cpu" in torch:
        yield Problem(f"torch {torch} is built without CUDA, but there is a GPU", "pip install torch with CUDA")
    needs = [
        ("bitsandbytes", quantize, "--quantize"),
        ("flash-attn", attn == "flash_attention_2", "--attn flash_attention_2"),
        ("unsloth", unsloth, "--unsloth"),
    ]
    for name, wanted, flag in needs:
        if wanted and not found.version(name):
            yield Problem(f"{flag} needs {name}", f"pip install {name}")
    if attn == "flash_attention_2" and not gpu:
        yield Problem("--attn flash_attention_2 needs a GPU", "use --attn sdpa")


def shadowing_problems(folder: Path) -> Iterator[Problem]:
    """Yield a problem if the folder arbor/ in `folder` would hide the installed package."""
    if (folder / "arbor" / "__init__.py").exists():
        yield Problem(
            f"arbor/__init__.py makes {folder / 'arbor'} hide the installed package arbor", "rm arbor/__init__.py"
        )


def _requirements(package: metadata.Distribution) -> Iterator[Requirement]:
    for text in package.requires or ():
        try:
            yield Requirement(text)
        except InvalidRequirement:
            continue


def _at_least(version: str | None, least: str) -> bool:
    try:
        return bool(version) and Version(version or "0") >= Version(least)
    except InvalidVersion:
        return False
