"""`python optimize.py --target retrieval`: fit the ranking weights of the adaptive memory, without a language model.

Without data it fits the default weights on synthetic conversations (memometer/synthetic). With --benchmark or --data it
fits weights on the training conversations of that data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memometer.errors import UserError

RECALL_BUDGETS = (512, 1024, 2048, 4096)
"""Budgets at which a fit reports evidence recall."""

SYNTHETIC = {"letters": 120, "chat": 80, "assistant": 80}
"""Number of synthetic conversations of each style that the default weights are fitted on."""

SYNTHETIC_WITH_ENCODER = {"letters": 16, "chat": 16, "assistant": 10}
"""The same with an encoder, which takes ten seconds and more per conversation."""

SYNTHETIC_DECAY = 1000.0
"""L2 penalty, in questions. It is strong, because real conversations differ from synthetic ones."""

VALIDATION = {"letters": 4, "chat": 4, "assistant": 4}
"""Number of further synthetic conversations on which the recall is reported."""

ABOUT_SYNTHETIC = {
    "data": "synthetic conversations of memometer/synthetic, and nothing else",
    "licence": "the licence of memometer (MIT)",
}

ABOUT_LOCOMO = {
    "data": "LOCOMO (Maharana et al., 2024)",
    "licence": "CC BY-NC 4.0, as LOCOMO: no commercial use",
}


def fit_ranking(given: dict[str, Any]) -> int:
    """Fit weights, print evidence recall on validation conversations, and write the files.

    Args:
        given: the options of the command line that were given.

    Returns:
        The exit code.

    Raises:
        UserError: the options or the data do not allow a fit.
    """
    from memometer.models import encoders
    from memometer.run.progress import eprint

    if others := set(given) - {"benchmark", "data", "seed", "encoder", "out", "folds"}:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(others))
        raise UserError(f"{flags} has no effect with --target retrieval; leave it out.")
    if given.get("folds") and given.get("encoder"):
        raise UserError("--folds writes files for the ranking without an encoder; leave out --encoder.")
    encoder = encoders.load(given["encoder"], log=eprint) if given.get("encoder") else None
    if not (encoder is None or isinstance(encoder, encoders.CachedTokenEncoder)):
        raise UserError(f"{encoder.name} has no token vectors; use --encoder minilm, or the folder of a BERT model.")
    if given.get("benchmark") or given.get("data"):
        return _fit_on_data(given, encoder)
    if given.get("folds"):
        raise UserError("--folds needs the data of a benchmark; name it with --benchmark or --data.")
    return _fit_on_synthetic(given, encoder)


def _fit_on_synthetic(given: dict[str, Any], encoder: Any) -> int:
    from memometer.harness.fit_ranker import synthetic_conversations

    if encoder and given.get("out") is None:
        raise UserError("the shipped weights are fitted without an encoder; use --out FOLDER with --encoder.")
    folder = _weights_folder(given.get("out"))
    numbers = SYNTHETIC_WITH_ENCODER if encoder else SYNTHETIC
    train = synthetic_conversations(numbers)
    validation = synthetic_conversations(VALIDATION, first=max(numbers.values()))
    made = ", ".join(f"{count} {style}" for style, count in numbers.items())
    print(f"Fitting on synthetic conversations ({made}) …", flush=True)
    _fit_and_report(given, encoder, folder, "default", (train, validation), ABOUT_SYNTHETIC, decay=SYNTHETIC_DECAY)
    return 0


def _fit_on_data(given: dict[str, Any], encoder: Any) -> int:
    from memometer import benchmarks
    from memometer.benchmarks.protocol import DataError
    from memometer.harness.fit_ranker import labelled

    try:
        data = benchmarks.read(given.get("benchmark"), given.get("data"))
    except DataError as error:
        raise UserError(str(error)) from error
    is_locomo = not data.kind and data.benchmark == "locomo"
    if given.get("out") is None and not is_locomo:
        raise UserError(f"the data are {data.kind or data.label}, and their weights are not shipped; use --out FOLDER.")
    folder = _weights_folder(given.get("out"))
    train, validation = data.part("train"), data.part("validation")
    if not train or not validation:
        raise UserError(f"{data.path} has too few conversations for a fit; it needs a training and a validation part.")
    if encoder and len(train) < 2:
        raise UserError("a fit with an encoder needs two training conversations or more.")
    print(f"{data.prefix}Fitting on {', '.join(c.id for c in train)} …", flush=True)
    about = ABOUT_LOCOMO if is_locomo else {"data": f"{data.path.name} ({data.sha256[:12]})", "licence": data.licence}
    parts = [labelled(c) for c in train], [labelled(c) for c in validation]
    name = "locomo" if is_locomo else "default"
    _fit_and_report(given, encoder, folder, name, parts, about, prefix=data.prefix)
    if given.get("folds"):
        _write_folds(given, folder, [labelled(c) for c in data.conversations], about)
    return 0


def _fit_and_report(
    given: dict[str, Any],
    encoder: Any,
    folder: Path,
    name: str,
    parts: tuple[Sequence[Any], Sequence[Any]],
    about: dict[str, str],
    *,
    decay: float | None = None,
    prefix: str = "",
) -> None:
    """Fit on the first of `parts`, print the recall on the second, and write the files."""
    from memometer.harness.fit_ranker import DECAY, fit, recalls, training_example
    from memometer.retrieval import ranker
    from memometer.systems.adaptive import AdaptiveMemory
    from memometer.token_counters import counter_for

    train, validation = parts
    seed = given.get("seed", 0)
    training_examples = {c.id: training_example(c, encoder) for c in train} if encoder else None
    weights, projection = fit(
        train,
        training_examples,
        encoder=encoder.name if encoder else "",
        decay=DECAY if decay is None else decay,
        seed=seed,
        about={**about, "made_by": _made_by(given)},
    )
    counter = counter_for(tokenizer=None)
    memory = AdaptiveMemory(count=counter, ranker=weights, encoder=encoder, projection=projection)
    print(f"{prefix}Evidence recall on {len(validation)} validation conversations by budget in {counter.name} tokens:")
    print(prefix + "  " + "".join(f"{budget:>8,}" for budget in RECALL_BUDGETS))
    for label, found in recalls(validation, memory, RECALL_BUDGETS, counter).items():
        print(prefix + "  " + "".join(f"{100 * value:8.1f}" for value in found) + f"  {label}")
    path = folder / (f"{name}-minilm.json" if encoder else ranker.shipped(name).name)
    for target, value in ((path, weights), (path.with_suffix(".npz"), projection)):
        if value is not None:
            value.save(target)
            print(f"{prefix}Written to {target}.", flush=True)


def _write_folds(given: dict[str, Any], folder: Path, conversations: Sequence[Any], about: dict[str, str]) -> None:
    """Write weights for each conversation that are fitted on all others."""
    from memometer.harness.fit_ranker import fit
    from memometer.retrieval import ranker

    known: dict[str, Any] = {}
    for held_out in conversations:
        others = [conversation for conversation in conversations if conversation is not held_out]
        about_fit = {**about, "made_by": _made_by(given)}
        weights, _ = fit(others, seed=given.get("seed", 0), about=about_fit, known=known)
        path = folder / ranker.shipped("locomo", without=held_out.id).name
        weights.save(path)
        print(f"Written to {path}.", flush=True)


def _made_by(given: dict[str, Any]) -> str:
    """Return the command that repeats this fit."""
    flags = [f"--{name} {given[name]}" for name in ("benchmark", "encoder") if given.get(name)]
    flags += ["--data FILE"] * bool(given.get("data")) + ["--folds"] * bool(given.get("folds"))
    return " ".join(["python optimize.py --target retrieval", *flags, f"--seed {given.get('seed', 0)}"])


def _weights_folder(out: str | None) -> Path:
    """The folder for fitted weights. Without `--out` it is that of the shipped weights, in a checkout only."""
    from memometer.retrieval.ranker import FOLDER

    if out is None and not (FOLDER.parent.parent.parent / "pyproject.toml").exists():
        raise UserError("--target retrieval needs --out FOLDER if memometer is installed as a package.")
    folder = Path(out) if out else FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be created as a folder ({error.strerror}); use another one.") from error
    return folder
