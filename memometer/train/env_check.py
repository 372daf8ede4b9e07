"""What is installed in an environment, this one or another, read from its files: nothing is imported, so that it takes
no time, and an environment that cannot be imported can be told why."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from memometer.train.arbor_request import VERSION, Problem

ARBOR = "arbor-ai"
TOGETHER = ("arbor-ai", "trl", "vllm", "transformers", "peft", "accelerate", "deepspeed", "dspy", "datasets")
"""Packages whose requirements are compared with what there is. Arbor's own are among them, and its pins."""

WEIGHTY = {*TOGETHER, "torch", "openai"}
"""Those whose versions decide whether the others can be imported."""


class Installed:
    """The packages in some folders (site-packages)."""

    def __init__(self, folders: list[str] | None = None) -> None:
        self.folders = folders if folders is not None else [path for path in sys.path if path]
        self.here = folders is None

    @classmethod
    def of(cls, environment: Path) -> Installed:
        """Of a virtual environment, or a site-packages folder. Raises FileNotFoundError."""
        found = [environment] if list(environment.glob("*.dist-info")) else []
        found += sorted(environment.glob("lib*/python3*/site-packages"))
        found += sorted(environment.glob("Lib/site-packages"))
        if not found:
            raise FileNotFoundError(f"{environment} is no environment: it has no lib/python3*/site-packages")
        return cls([str(path) for path in found])

    @cached_property
    def packages(self) -> dict[str, metadata.Distribution]:
        """By normalised name."""
        found: dict[str, metadata.Distribution] = {}
        for package in metadata.distributions(path=self.folders):
            if name := package.metadata["Name"]:
                found.setdefault(_normal(name), package)
        return found

    @property
    def python(self) -> str:
        """Its version, such as 3.11; empty where its folders do not say."""
        if self.here:
            return f"{sys.version_info.major}.{sys.version_info.minor}"
        named = re.search(r"python(3\.\d+)", self.folders[0])
        return named[1] if named else ""

    def version(self, name: str) -> str | None:
        package = self.packages.get(_normal(name))
        return package.version if package else None

    def file(self, path: str) -> Path | None:
        """A file beside the packages."""
        return next((Path(f) / path for f in self.folders if (Path(f) / path).is_file()), None)

    def conflicts(self) -> Iterator[Problem]:
        """Requirements of TOGETHER, without extras, that what is installed does not meet."""
        for name in TOGETHER:
            if (package := self.packages.get(name)) is None:
                continue
            for text in package.requires or ():
                try:
                    requirement = Requirement(text)
                except InvalidRequirement:
                    continue
                if requirement.marker and not requirement.marker.evaluate({"extra": "", "python_version": self.python}):
                    continue
                there = self.version(requirement.name)
                if there is not None and not requirement.specifier.contains(there, prereleases=True):
                    yield Problem(
                        f"{name} {package.version} wants {requirement.name}{requirement.specifier}, and {there} is "
                        "installed",
                        f"pip install '{requirement.name}{requirement.specifier}'",
                        fatal=_normal(requirement.name) in WEIGHTY,
                    )


def of_arbor(found: Installed, *, training_gpus: int) -> Iterator[Problem]:
    """What keeps the Arbor that is installed from training."""
    version = found.version(ARBOR)
    install = "make an environment from arbor/requirements.txt"
    if found.version("arbor"):
        yield Problem(
            "a package named arbor is installed, which is a simulator of neurons"
            + ("; its files lie among Arbor's" if version else ""),
            f"pip uninstall arbor && pip install --force-reinstall --no-deps {ARBOR}=={VERSION}",
        )
    if version is None:
        return
    if version != VERSION:
        yield Problem(
            f"{ARBOR} {version} is installed, and {VERSION} is what is known here: its interface and its faults",
            f"pip install {ARBOR}=={VERSION}",
        )
    if found.python and not (3, 11) <= tuple(map(int, found.python.split("."))) < (3, 14):
        yield Problem(f"{ARBOR} does not run on Python {found.python}", "use 3.11, 3.12 or 3.13")
    yield from _of_transformers(found)
    for missing in ("vllm", "trl", "transformers", "peft", "deepspeed", "wandb"):
        if found.version(missing) is None:
            yield Problem(f"{ARBOR} is installed without {missing}, which its server imports", install)
    config = found.file("configs/deepspeed_config.yaml")
    if config is None:
        place = f"{found.folders[0]}/configs"
        yield Problem(
            f"configs/deepspeed_config.yaml is missing beside {ARBOR}, whose wheel lacks it: no training starts",
            f"mkdir -p {place} && cp arbor/deepspeed_config.yaml {place}/",
        )
    else:
        text = config.read_text(errors="replace")
        if training_gpus > 1 and not re.search(r"^\s*zero_stage:\s*[123]\b", text, re.MULTILINE):
            yield Problem(
                f"{config} shards nothing: each of the {training_gpus} training GPUs would hold the whole model",
                f"cp arbor/deepspeed_config.yaml {config}",
                fatal=False,
            )
        if not re.search(r"^mixed_precision:\s*['\"]?bf16", text, re.MULTILINE):
            yield Problem(f"{config} does not say mixed_precision: bf16", f"cp arbor/deepspeed_config.yaml {config}")


def _of_transformers(found: Installed) -> Iterator[Problem]:
    version = found.version("transformers")
    if version and _version(version) >= Version("5"):
        yield Problem(
            f"transformers {version} breaks trl {found.version('trl') or '0.23.1'}, which Arbor {VERSION} needs",
            "pip install 'transformers>=4.53.2,<5'",
        )


def of_trl(found: Installed, *, quantize: bool, attn: str | None, unsloth: bool, gpu: bool) -> Iterator[Problem]:
    """What keeps this machine's TRL from training."""
    train = "pip install torch && pip install -c constraints.txt '.[train]'"
    missing = [n for n in ("torch", "transformers", "trl", "peft", "accelerate", "datasets") if not found.version(n)]
    if missing:
        yield Problem(f"--backend trl needs {', '.join(missing)}, not installed here", train)
    if found.version(ARBOR) and found.version("trl"):
        yield Problem(
            f"{ARBOR} and trl are in one environment, and {ARBOR} wants a trl of its own", "give each its environment"
        )
    trl, torch = found.version("trl"), found.version("torch")
    if trl and _version(trl) < Version("1"):
        yield Problem(f"trl {trl} is too old for --backend trl", train)
    if torch and gpu and "+cpu" in torch:
        yield Problem(f"torch {torch} is built without CUDA, and there is a GPU", "pip install torch with CUDA")
    wanted = {"bitsandbytes": quantize, "flash-attn": attn == "flash_attention_2", "unsloth": unsloth}
    flags = {"bitsandbytes": "--quantize", "flash-attn": "--attn flash_attention_2", "unsloth": "--unsloth"}
    for name, asked in wanted.items():
        if asked and not found.version(name):
            yield Problem(f"{flags[name]} needs {name}, not installed here", f"pip install {name}")
    if attn == "flash_attention_2" and not gpu:
        yield Problem("--attn flash_attention_2 needs a GPU", "use --attn sdpa")


def shadowed(folder: Path) -> Iterator[Problem]:
    """Whether our folder arbor/ would be taken for the package."""
    if (folder / "arbor" / "__init__.py").exists():
        yield Problem(
            "arbor/__init__.py makes our folder the package of that name, for all that is started from here",
            "rm arbor/__init__.py",
        )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")
