"""GRPO on an Arbor server.

Prompts go to the job's own model, its completions are graded here, and the groups are submitted to the trainer. The
server stores no history, so the run folder stores it: arbor.json names the job, steps.jsonl has every submitted group,
and each checkpoint is copied here at once. A killed run continues its job while the server still has it. Otherwise a
new job starts from the newest checkpoint with the prompts that it has not seen.

The weights of the server's model lag one step behind: Arbor requests a batch before it has learned from the last one.
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

from memometer.errors import UserError
from memometer.run.folder import RunFolder
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint
from memometer.token_counters import counter_for
from memometer.train import checkpoints, merge_lora, metrics
from memometer.train.arbor_client import ArborError, ArborServer, Completion
from memometer.train.arbor_endpoint import START, Endpoint, EndpointError, read_endpoint
from memometer.train.arbor_request import (
    find_problems,
    gpu_ids,
    initialize_request,
    storage_folder,
    write_server_config,
)
from memometer.train.local_model import require
from memometer.train.plan import Outcome, TrainingPlan
from memometer.train.prompt_dataset import ReadingPrompt, schedule
from memometer.train.results import finish
from memometer.train.reward import RewardFunction, grade

CONCURRENT_VALIDATIONS = 8
"""Validation prompts sent at once; the server batches them."""
TOKENIZER_MARGIN = 1.1
"""Upper bound of a model's tokens, with its chat template, per o200k_base token. Qwen and Llama need 3.4 % more."""


def check(plan: TrainingPlan) -> None:
    """Raise UserError for a configuration that cannot work, and print warnings. Starts nothing."""
    options, values = plan.options, plan.hyperparameters
    problems = find_problems(
        values,
        inference_gpus=options.inference_gpus,
        training_gpus=options.training_gpus,
        examples=options.examples,
    )
    for problem in problems:
        if problem.fatal:
            raise UserError(f"{problem}.")
        plan.eprint(f"{problem}.")
    count = counter_for()
    longest = max(sum(count(m["content"]) for m in p.messages) for p in (*plan.train, *plan.validation))
    if longest * TOKENIZER_MARGIN > values.max_prompt_tokens:
        raise UserError(
            f"The longest prompt has about {longest:,} tokens, and --max-prompt-tokens is "
            f"{values.max_prompt_tokens:,}: Arbor would cut off its beginning. Raise the limit, or use smaller "
            "--budgets."
        )
    if options.adapter:
        raise UserError("Arbor cannot start from an adapter; use a merged model with --model, or --backend trl.")
    if options.quantize or options.model.startswith("embedded:"):
        raise UserError("Arbor trains unquantised models from the Hugging Face hub only; use --backend trl.")
    if options.merge:
        require("torch", "transformers", "peft")
    try:
        with read_endpoint(options.arbor_url).open() as url, ArborServer(url) as server:
            server.check()
    except (EndpointError, ArborError) as error:
        raise UserError(f"{str(error).rstrip('.')}.") from error


def train(plan: TrainingPlan, folder: RunFolder) -> Outcome:
    """Train or continue. The outcome is `stopped` after Ctrl-C, or if the server does not answer any more."""
    options = plan.options
    config = Path(options.arbor_config)
    if write_server_config(config, inference_gpus=options.inference_gpus, training_gpus=options.training_gpus):
        eprint(f"{config} written.")
    endpoint = read_endpoint(options.arbor_url)
    with endpoint.open() as url, stopping() as stop, ArborServer(url) as server:
        training = ArborTraining(plan, folder, endpoint, server, stop)
        try:
            return training.run()
        except (ArborError, EndpointError) as error:
            restart = "" if endpoint.ssh else f" Restart the server first ({START}): it keeps the GPUs of dead jobs."
            message = f"{str(error).rstrip('.')}. {training.explain_failure()}Step {training.saved_step} is saved."
            print(f"train.py: {message}", file=sys.stderr)
            print(f"train.py: continue with: python train.py --resume {folder.path}.{restart}", file=sys.stderr)
            return "stopped"


class ArborTraining:
    """One training on one server.

    Attributes:
        job: Id of the job on the server, which is also the name of its model.
        start: Step from which the job continues; the job's batch 0 is this step.
        base: The adapter that is merged into the model from which the job started.
    """

    def __init__(
        self, plan: TrainingPlan, folder: RunFolder, endpoint: Endpoint, server: ArborServer, stop: threading.Event
    ) -> None:
        self.plan, self.folder, self.endpoint, self.server, self.stop = plan, folder, endpoint, server, stop
        self.options, self.values = plan.options, plan.hyperparameters
        self.path = folder.path
        self.job = ""
        self.start = 0
        self.base: Path | None = None
        self.reward = RewardFunction(
            steps=plan.steps,
            num_generations=self.values.num_generations,
            log_reply=lambda record: metrics.append(self.path / metrics.REPLIES, record),
        )

    @property
    def saved_step(self) -> int:
        """The step of the newest local checkpoint."""
        newest = checkpoints.newest_checkpoint(self.path)
        return checkpoints.step_of(newest) if newest else 0

    def run(self) -> Outcome:
        """Train to the last step, end the job, and write the results."""
        order = schedule(self.plan.train, per_step=1, steps=self.plan.steps, seed=self.options.seed)
        step = self._attach()
        if step is None:
            step = self._begin()
        if step:
            self._save_and_validate(step)  # a kill may have come between a group and its checkpoint
        else:
            self._validate(0)
        for n in range(step, self.plan.steps):
            if self.stop.is_set():
                self.plan.eprint("Stopped. The server keeps waiting, and a rented machine keeps costing.")
                return "stopped"
            self._learn(n, self.plan.train[order[n]])
            self._save_and_validate(n + 1)
        try:
            self.server.end(self.job)
        except ArborError as error:  # all results are here already
            self.plan.eprint(f"The server did not end the job ({error}); restart it before the next one.")
        # The evaluation needs a GPU, which this machine usually lacks.
        outcome = finish(replace(self.plan, options=replace(self.options, num_test=0)), self.folder)
        self.plan.print(f"Next: python train.py --mode evaluate --adapter {self.path / 'best'}")
        return outcome

    # ------------------------------------------------------------ the job on the server

    def _begin(self) -> int:
        """Start a job from the newest checkpoint, or from the base model; return its first step."""
        self.start = self.saved_step
        model = self.options.model
        if self.start:
            self.base = self.path / f"checkpoint-{self.start}"
            model = self._merge_remotely(self.base, model)
        self._rewind(self.start)
        eprint(f"Starting {model} on the server from step {self.start}; this takes minutes.")
        status = self.server.initialize(
            initialize_request(
                self.values,
                model=model,
                # Arbor only adds the date, so a random suffix keeps the job folders apart.
                run_name=f"{self.path.resolve().name}-{secrets.token_hex(3)}",
                steps=self.plan.steps - self.start,
                inference_gpus=gpu_ids(self.options.inference_gpus),
                training_gpus=gpu_ids(self.options.training_gpus),
            )
        )
        self.job = status["job_id"]
        base = None if self.base is None else self.base.name
        self.folder.write_json("arbor.json", {"job_id": self.job, "start": self.start, "base": base})
        return self.start

    def _attach(self) -> int | None:
        """Continue the job in arbor.json; return its step, or None if the server no longer has it."""
        file = self.path / "arbor.json"
        if not file.exists():
            return None
        record = json.loads(file.read_text())
        pending = self.server.pending_batches(record["job_id"])
        if not pending or record["start"] + pending[0] > self.plan.steps:
            return None
        step: int = record["start"] + pending[0]
        self._rewind(step)
        self.job, self.start = record["job_id"], record["start"]
        self.base = self.path / record["base"] if record["base"] else None
        eprint(f"The server still has the job; continuing at step {step}.")
        return step

    def _rewind(self, step: int) -> None:
        """Remove the metrics after a step and restore the state of the reward."""
        for name in (metrics.STEPS, metrics.REPLIES, metrics.VALIDATIONS):
            metrics.rewind(self.path / name, step)
        if newest := checkpoints.newest_checkpoint(self.path):
            self.reward.restore(newest)

    def _merge_remotely(self, adapter: Path, base: str) -> str:
        """Merge an adapter into the base model on the server's machine; return the folder there."""
        target = f"{self._storage()}/merged/{self.path.resolve().name}-{adapter.name}"
        if not self.endpoint.ssh:
            require("torch", "transformers", "peft")
        eprint(f"Merging {adapter} into {base} on the server's machine.")
        sent = self.endpoint.send(adapter, f"{target}-adapter")
        arguments = " ".join(map(shlex.quote, (sent, base, target)))
        self.endpoint.run(
            f"{self.endpoint.python} - {arguments}", stdin=merge_lora.MERGE.encode(), timeout_seconds=3600
        )
        return target

    def _storage(self) -> str:
        return self.endpoint.storage or storage_folder(Path(self.options.arbor_config))

    def explain_failure(self) -> str:
        """Return advice from the trainer's log, if it can be read and shows a known cause."""
        log = shlex.quote(f"{self._storage()}/{self.job}/logs/grpo_training.log")
        try:
            text = self.endpoint.run(f"tail -n 200 {log}") if self.job else b""
        except EndpointError:
            return ""
        if b"out of memory" not in text.lower():
            return ""
        half = max(1, self.values.num_generations // 2)
        return (
            "The trainer ran out of GPU memory: halve the completions per GPU (double --gradient-accumulation, or "
            f"--num-generations {half}), or lower --max-prompt-tokens. python train.py --mode doctor estimates the "
            "memory. "
        )

    # ------------------------------------------------------------ steps

    def _learn(self, step: int, prompt: ReadingPrompt) -> None:
        self.server.wait_for_batch(self.job, step - self.start)
        completions = self._complete(prompt, n=self.values.num_generations, temperature=self.values.temperature)
        texts = [completion.text for completion in completions]
        rewards = self.reward(
            [prompt.messages] * len(texts),
            texts,
            [json.dumps(prompt.case.as_json())] * len(texts),
            SimpleNamespace(global_step=step),
        )
        group = [
            {"messages": list(prompt.messages), "completion": {"role": "assistant", "content": text}, "reward": reward}
            for text, reward in zip(texts, rewards, strict=True)
        ]
        self.server.step(self.job, self.job, step - self.start, group)
        record = {
            "step": step + 1,
            "reward": fmean(rewards),
            **metrics.step_metrics(self.reward.take_grades(), self.values.num_generations),
            "truncated": fmean(completion.truncated for completion in completions),
        }
        metrics.append(self.path / metrics.STEPS, record)
        self.plan.eprint(metrics.format_line(record))
        if alarm := metrics.reward_hacking_alarm(metrics.read_lines(self.path / metrics.STEPS)):
            self.plan.eprint(alarm)

    def _save_and_validate(self, step: int) -> None:
        """Write the checkpoint and run the validation that are due after a step, unless they are done already."""
        validates = step % self.options.eval_steps == 0 or step == self.plan.steps
        if not validates and step % self.options.save_steps:
            return
        # First the checkpoint: the trainer sends its weights to the server's model before it writes one.
        checkpoint = self._save(step) if self.saved_step < step else self.path / f"checkpoint-{step}"
        done = [line["step"] for line in metrics.read_lines(self.path / metrics.VALIDATIONS)]
        if validates and step not in done:
            self._validate(step, checkpoint)

    def _complete(self, prompt: ReadingPrompt, *, n: int, temperature: float) -> list[Completion]:
        return self.server.complete(
            self.job,
            prompt.messages,
            n=n,
            temperature=temperature,
            max_tokens=self.values.max_completion_tokens,
        )

    def _validate(self, step: int, checkpoint: Path | None = None) -> None:
        """Validate the server's weights and save their checkpoint as the best one if its reward is higher."""
        with ThreadPoolExecutor(CONCURRENT_VALIDATIONS) as pool:
            replies = pool.map(lambda prompt: self._complete(prompt, n=1, temperature=0.0)[0], self.plan.validation)
            grades = [grade(p.case, reply.text) for p, reply in zip(self.plan.validation, replies, strict=True)]
        scores = self.path / metrics.VALIDATIONS
        metrics.rewind(scores, step - 1)
        record = checkpoints.validation_record(step, grades)
        if checkpoint and record["reward"] > checkpoints.best_reward(scores, except_step=step):
            ignored = shutil.ignore_patterns("rewards.json", checkpoints.COMPLETE)
            checkpoints.save_best(
                self.plan, self.path, record, lambda part: shutil.copytree(checkpoint, part, ignore=ignored)
            )
        metrics.append(scores, record)  # last, because it marks this step's validation as done
        self.plan.eprint(metrics.format_line(record))

    def _save(self, step: int) -> Path:
        """Copy the trainer's state here, into a folder with the trainer's step number.

        The trainer may not have learned from all submitted groups. A training that continues from this checkpoint
        submits the rest again.
        """
        for _ in range(3):  # a trainer that is learning may answer before it is done
            record = self.server.checkpoint(self.job, f"step-{step}-{secrets.token_hex(2)}")
            if self.start + int(record["global_step"]) >= step:
                break
        target = self.path / f"checkpoint-{self.start + int(record['global_step'])}"
        part = self.path / ".checkpoint"
        self.endpoint.fetch(record["checkpoint_dir"], part)
        if not (part / merge_lora.WEIGHTS).exists():
            raise ArborError(f"{record['checkpoint_dir']} has no {merge_lora.WEIGHTS}; see the trainer's log")
        merge_lora.set_base_model(part, self.options.model)
        if self.base is not None:
            merge_lora.stack(self.base, part, part)
        self.reward.save(part)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        checkpoints.mark_complete(target)
        return target
