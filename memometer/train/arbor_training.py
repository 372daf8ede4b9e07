"""GRPO on an Arbor server: prompts go to the job's own model, its replies are graded here and handed in by groups.

The server has no memory of a run, so the run folder has: arbor.json names the job, steps.jsonl every group handed in,
and each checkpoint is copied here before anything ends. A run that was killed goes on with the job while the server
still has it; else a new job starts from the newest checkpoint, with the prompts that it has not seen.

Weights reach the server's model one step late: Arbor asks for the next batch before it has learned from the last one.
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from memometer.harness.plan import Refused
from memometer.run.folder import RunFolder
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint
from memometer.token_counters import counter_for
from memometer.train import adapters, merge_lora, metrics
from memometer.train.arbor_client import ArborError, ArborServer, Reply
from memometer.train.arbor_endpoint import START, Endpoint, EndpointError, read
from memometer.train.arbor_request import gpu_ids, problems, request, settings, storage, write_config
from memometer.train.local_model import require
from memometer.train.plan import Job, Outcome
from memometer.train.prompt_dataset import ReadingPrompt, schedule
from memometer.train.reward import grade
from memometer.train.trl_reward import Rewarding

VALIDATING = 8
"""Validation prompts asked at once; the server batches them."""
MARGIN = 1.1
"""A model's own tokens, with its chat template, by those of o200k_base: 3.4 % more in Qwen and Llama, and a little."""
SCORES = "validation_scores.jsonl"


def check(job: Job) -> None:
    """Raises Refused for what cannot work, and says what can, but badly. Starts nothing."""
    for problem in problems(job.values, **settings(job.config)):
        if problem.fatal:
            raise Refused(f"{problem}.")
        eprint(f"{job.data.prefix}{problem}.")
    count = counter_for()
    longest = max(sum(count(m["content"]) for m in p.messages) for p in (*job.train, *job.validation))
    if longest * MARGIN > job.values["max_prompt_tokens"]:
        raise Refused(
            f"The longest prompt takes about {longest:,} tokens and --max-prompt-tokens is "
            f"{job.values['max_prompt_tokens']:,}; Arbor would cut its beginning off. Raise that, or use smaller "
            "--budgets."
        )
    if job.config["adapter"]:
        raise Refused("Arbor starts from whole models: give a merged one with --model, or use --backend trl.")
    if job.config["quantize"] or job.config["model"].startswith("embedded:"):
        raise Refused("Arbor trains models of the Hugging Face hub, not quantised ones; use --backend trl.")
    if job.config["merge"]:
        require("torch", "transformers", "peft")
    try:
        endpoint = read(job.config["arbor_url"])
        with endpoint.open() as url:
            server = ArborServer(url)
            try:
                server.check()
            finally:
                server.close()
    except (EndpointError, ArborError) as error:
        raise Refused(f"{str(error).rstrip('.')}.") from error


def train(job: Job, folder: RunFolder) -> Outcome:
    """Train, or go on. The outcome is `stopped` where the server went away or Ctrl-C was pressed."""
    path = Path(job.config["arbor_config"])
    gpus = {name: gpu_ids(job.config[name]) for name in ("inference_gpus", "training_gpus")}
    if write_config(path, **gpus):
        eprint(f"{path} written.")
    endpoint = read(job.config["arbor_url"])
    with endpoint.open() as url, stopping() as stop:
        run = Run(job, folder, endpoint, ArborServer(url), stop)
        try:
            return run.carry_out()
        except (ArborError, EndpointError) as error:
            again = f"python train.py --resume {folder.path}"
            restart = "" if endpoint.ssh else f" Restart the server first ({START}): it keeps the GPUs of dead jobs."
            said = f"{str(error).rstrip('.')}. {run.why()}Step {run.kept} is safe."
            print(f"train.py: {said}", file=sys.stderr)
            print(f"train.py: go on with: {again}.{restart}", file=sys.stderr)
            return "stopped"
        finally:
            run.server.close()


class Run:
    """One training on one server."""

    def __init__(
        self, job: Job, folder: RunFolder, endpoint: Endpoint, server: ArborServer, stop: threading.Event
    ) -> None:
        self.job, self.folder, self.endpoint, self.server, self.stop = job, folder, endpoint, server, stop
        self.id = ""
        """The job's, over there; also the name of its model."""
        self.start = 0
        """The step from which the job goes on: its batch 0 is this step."""
        self.base: Path | None = None
        """The adapter that is merged into the model that the job started from."""
        self.rewarding = Rewarding(
            steps=job.steps,
            num_generations=job.values["num_generations"],
            keep=lambda record: metrics.append(folder.path / "replies.jsonl", record),
        )

    @property
    def kept(self) -> int:
        """The step of the newest checkpoint that is here."""
        newest = adapters.newest_checkpoint(self.folder.path)
        return adapters.step_of(newest) if newest else 0

    def carry_out(self) -> Outcome:
        order = schedule(self.job.train, per_step=1, steps=self.job.steps, seed=self.job.config["seed"])
        if (at := self._attach()) is None:
            at = self._begin()
        if at:
            self._settle(at)  # a kill may have come between a group and what follows it
        else:
            self._validate(0)
        for step in range(at, self.job.steps):
            if self.stop.is_set():
                self._aside("Stopped; the server goes on waiting, and costing.")
                return "stopped"
            self._learn(step, self.job.train[order[step]])
            self._settle(step + 1)
        try:
            self.server.end(self.id)
        except ArborError as error:  # everything is here by now
            self._aside(f"The server did not end the job ({error}); restart it before the next one.")
        # What is trained is evaluated where there is a GPU, and that is seldom here.
        job = replace(self.job, config={**self.job.config, "num_test": 0})
        outcome = adapters.conclude(job, self.folder)
        self.job.say(f"Next: python train.py --mode evaluate --adapter {self.folder.path / 'best'}")
        return outcome

    # ------------------------------------------------------------ a job on the server

    def _begin(self) -> int:
        """Start a job from the newest checkpoint, or anew; returns the step that it goes on from."""
        self.start = self.kept
        model = str(self.job.config["model"])
        if self.start:
            self.base = self.folder.path / f"checkpoint-{self.start}"
            model = self._merged(self.base, model)
        self._rewind(self.start)
        eprint(f"Starting {model} on the server from step {self.start}; this takes minutes.")
        status = self.server.initialize(
            request(
                self.job.values,
                model=model,
                # The day is all that Arbor adds, and a folder is named so.
                run_name=f"{self.folder.path.resolve().name}-{secrets.token_hex(3)}",
                steps=self.job.steps - self.start,
                inference_gpus=gpu_ids(self.job.config["inference_gpus"]),
                training_gpus=gpu_ids(self.job.config["training_gpus"]),
            )
        )
        self.id = status["job_id"]
        base = None if self.base is None else self.base.name
        self.folder.write_json("arbor.json", {"job_id": self.id, "start": self.start, "base": base})
        return self.start

    def _attach(self) -> int | None:
        """Go on with the job of arbor.json; returns its step, None where there is none any more."""
        file = self.folder.path / "arbor.json"
        if not file.exists():
            return None
        was = json.loads(file.read_text())
        pending = self.server.pending(was["job_id"])
        if not pending or was["start"] + pending[0] > self.job.steps:
            return None
        self._rewind(was["start"] + pending[0])
        self.id, self.start = was["job_id"], was["start"]
        self.base = self.folder.path / was["base"] if was["base"] else None
        eprint(f"The server still has the job; going on at step {self.start + pending[0]}.")
        return self.start + pending[0]

    def _rewind(self, step: int) -> None:
        """Forget what was written after a step, and what asking for more was worth then."""
        for name in ("steps.jsonl", "replies.jsonl", SCORES):
            metrics.rewind(self.folder.path / name, step)
        if newest := adapters.newest_checkpoint(self.folder.path):
            self.rewarding.restore(newest)

    def _merged(self, adapter: Path, base: str) -> str:
        """A folder on the server's machine with the base and the adapter in one."""
        home = f"{self._storage()}/merged"
        target = f"{home}/{self.folder.path.resolve().name}-{adapter.name}"
        if not self.endpoint.ssh:
            require("torch", "transformers", "peft")
        eprint(f"Merging {adapter} into {base} on the server's machine.")
        there = self.endpoint.send(adapter, f"{target}-adapter")
        words = " ".join(map(shlex.quote, (there, base, target)))
        self.endpoint.run(f"{self.endpoint.python} - {words}", given=merge_lora.MERGE, timeout_seconds=3600)
        return target

    def _storage(self) -> str:
        return self.endpoint.storage or storage(Path(self.job.config["arbor_config"]))

    def why(self) -> str:
        """What the trainer's log says of its end, where it can be read."""
        log = shlex.quote(f"{self._storage()}/{self.id}/logs/grpo_training.log")
        try:
            text = self.endpoint.run(f"tail -n 200 {log}") if self.id else ""
        except EndpointError:
            return ""
        if "out of memory" in text.lower():
            half = max(1, self.job.values["num_generations"] // 2)
            return (
                "The trainer ran out of GPU memory: halve what one GPU holds at once (--gradient-accumulation twice as "
                f"large, or --num-generations {half}), or lower --max-prompt-tokens; python train.py --mode doctor "
                "estimates by how much. "
            )
        return ""

    # ------------------------------------------------------------ its steps

    def _learn(self, step: int, prompt: ReadingPrompt) -> None:
        self.server.wait_for(self.id, step - self.start)
        replies = self._ask(prompt, n=self.job.values["num_generations"], temperature=self.job.values["temperature"])
        texts = [reply.text for reply in replies]
        rewards = self.rewarding(
            [prompt.messages] * len(texts),
            texts,
            [json.dumps(prompt.case.as_json())] * len(texts),
            SimpleNamespace(global_step=step),
        )
        group = [
            {"messages": list(prompt.messages), "completion": {"role": "assistant", "content": text}, "reward": reward}
            for text, reward in zip(texts, rewards, strict=True)
        ]
        self.server.step(self.id, self.id, step - self.start, group)
        record = {"step": step + 1, "reward": fmean(rewards), **self.rewarding.taken()}
        record |= {"truncated": fmean(reply.cut for reply in replies)}
        metrics.append(self.folder.path / "steps.jsonl", record)
        self._aside(metrics.line(record))
        if warning := metrics.alarm(metrics.read_lines(self.folder.path / "steps.jsonl")):
            self._aside(warning)

    def _settle(self, done: int) -> None:
        """The checkpoint and the validation that are due after a step, where they are not there yet."""
        validates = done % self.job.eval_steps == 0 or done == self.job.steps
        if not validates and done % int(self.job.config["save_steps"]):
            return
        # First the checkpoint: the trainer gives its weights to the server's model before it writes one.
        checkpoint = self._save(done) if self.kept < done else self.folder.path / f"checkpoint-{done}"
        if validates and all(line["step"] != done for line in metrics.read_lines(self.folder.path / SCORES)):
            self._validate(done, checkpoint)

    def _ask(self, prompt: ReadingPrompt, *, n: int, temperature: float) -> list[Reply]:
        return self.server.complete(
            self.id,
            prompt.messages,
            n=n,
            temperature=temperature,
            max_tokens=self.job.values["max_completion_tokens"],
        )

    def _validate(self, step: int, checkpoint: Path | None = None) -> None:
        """What the server's weights are worth on the validation prompts, and whether their checkpoint is the best so
        far. Step 0 is the base, of which there is none."""
        with ThreadPoolExecutor(VALIDATING) as pool:
            asked = pool.map(lambda prompt: self._ask(prompt, n=1, temperature=0.0)[0], self.job.validation)
            grades = [grade(p.case, reply.text) for p, reply in zip(self.job.validation, asked, strict=True)]
        file = self.folder.path / SCORES
        metrics.rewind(file, step - 1)
        before = [line["reward"] for line in metrics.read_lines(file) if line["step"]]
        record: dict[str, Any] = {"step": step, "what": "validation", "reward": fmean(g.reward for g in grades)}
        record |= metrics.of_grades(grades)
        if checkpoint and record["reward"] > max(before, default=float("-inf")):
            self._keep(checkpoint, record)
        metrics.append(file, record)  # last: it says that this step is settled
        self._aside(metrics.line(record))

    def _keep(self, checkpoint: Path, record: dict[str, Any]) -> None:
        part = self.folder.path / "best.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(checkpoint, part, ignore=shutil.ignore_patterns("rewards.json", adapters.COMPLETE))
        (part / "training.json").write_text(json.dumps(adapters.notes(self.job, record), indent=1) + "\n")
        (part / "README.md").write_text(adapters.card(self.job, record), encoding="utf-8")
        shutil.rmtree(self.folder.path / "best", ignore_errors=True)
        part.replace(self.folder.path / "best")

    def _save(self, step: int) -> Path:
        """Copy the trainer's state here. Its name says which step that is: the trainer may be behind what it was
        handed, and a training that goes on from here hands it the rest again."""
        for _ in range(3):  # asked while it learns, it may answer before it has
            record = self.server.checkpoint(self.id, f"step-{step}-{secrets.token_hex(2)}")
            if self.start + int(record["global_step"]) >= step:
                break
        target = self.folder.path / f"checkpoint-{self.start + int(record['global_step'])}"
        raw = self.folder.path / ".checkpoint"
        self.endpoint.fetch(record["checkpoint_dir"], raw)
        if not (raw / merge_lora.WEIGHTS).exists():
            raise ArborError(
                f"{record['checkpoint_dir']} holds no adapter ({merge_lora.WEIGHTS}); see the trainer's log"
            )
        merge_lora.set_base(raw, str(self.job.config["model"]))
        if self.base is not None:
            merge_lora.stack(self.base, raw, raw)
        self.rewarding.save(raw)
        shutil.rmtree(target, ignore_errors=True)
        raw.rename(target)
        adapters.complete(target)
        return target

    def _aside(self, line: str) -> None:
        eprint(f"{self.job.data.prefix}{line}")
