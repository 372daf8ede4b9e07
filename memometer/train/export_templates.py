"""Source texts of exported folders: a taskset or environment for verifiers, a reward or agent loop for verl.

They only relay messages. The memory, the budgets and the reward are those of the installed memometer.
"""

from __future__ import annotations

ENVIRONMENT = '''\
"""Lookups in memometer's memory as a verifiers environment: one question, several calls, one reward."""

import json
from functools import cache
from pathlib import Path

import verifiers.v1 as vf

from memometer.train import episode_files
from memometer.train.episodes import messages_after

__all__ = ["LookupEnv", "LookupTaskset"]


@cache
def episodes():
    return episode_files.read(Path(__file__).parent / "episodes.json")


class LookupData(vf.TaskData):
    """The id of a question."""

    question: str


class LookupTask(vf.Task[LookupData]):
    def _grade(self, trace):
        return episodes().grade(self.data.question, [(m.content or "").strip() for m in trace.assistant_messages])

    @vf.reward(weight=1.0)
    async def reading(self, trace: vf.Trace) -> float:
        return self._grade(trace).reward

    @vf.metric
    async def calls(self, trace: vf.Trace) -> float:
        return float(self._grade(trace).calls)

    @vf.metric
    async def strict(self, trace: vf.Trace) -> float:
        return self._grade(trace).strict

    @vf.metric
    async def f1(self, trace: vf.Trace) -> float:
        return self._grade(trace).f1


class LookupConfig(vf.TasksetConfig):
    split: str = "train"  # or validation


class LookupTaskset(vf.Taskset[LookupTask, LookupConfig]):
    def load(self) -> list[LookupTask]:
        lines = (Path(__file__).parent / f"{self.config.split}.jsonl").read_text(encoding="ascii").splitlines()
        return [LookupTask(LookupData(**json.loads(line)), self.config.task) for line in lines]


class LookupEnvConfig(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"})


class LookupEnv(vf.Env[LookupEnvConfig]):
    async def run(self, task, agents):
        reading = episodes().open(task.data.question)
        async with agents.agent.interaction(task) as conversation:
            segment = await conversation.turn()  # the task's prompt is the first call
            while not segment.terminated:
                before = episodes().messages(reading)
                if not episodes().take(reading, segment.last_reply):
                    break
                segment = await conversation.turn(messages_after(before, episodes().messages(reading)))
'''

AGENT_LOOP = '''\
"""Lookups in memometer's memory as an agent loop of verl: one question, several calls, one reward."""

from functools import cache
from pathlib import Path
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput

from memometer.train import episode_files
from memometer.train.episodes import messages_after


@cache
def episodes():
    return episode_files.read(Path(__file__).parent / "episodes.json")


class LookupAgentLoop(AgentLoopBase):
    async def run(self, sampling_params, priority=0, **kwargs):
        question = kwargs["extra_info"]["question"]
        reading, messages = episodes().open(question), list(kwargs["raw_prompt"])
        tokens = await self.ct_build_initial_tokens(messages)
        mask, logprobs, replies = [], [], []
        sampling_params = {**sampling_params, "max_tokens": episodes().reply_tokens}
        while True:
            output = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=tokens, sampling_params=sampling_params, priority=int(priority)
            )
            merged, mask, logprobs = await self.ct_merge_assistant_token(
                tokens,
                output.token_ids,
                mask,
                logprobs if logprobs or output.log_probs else None,
                assistant_logprobs=output.log_probs or None,
            )
            logprobs = logprobs or []
            tokens = merged.token_ids
            replies.append(self.tokenizer.decode(output.token_ids, skip_special_tokens=True))
            before = episodes().messages(reading)
            if not episodes().take(reading, replies[-1]):
                break
            added = {"role": "user", "content": messages_after(before, episodes().messages(reading))}
            previous = [*messages, {"role": "assistant", "content": replies[-1]}]
            messages = [*previous, added]
            merged, mask, logprobs = await self.ct_merge_context_msg(
                previous, messages, tokens, mask, logprobs or None
            )
            logprobs = logprobs or []
            tokens = merged.token_ids
        length = self.rollout_config.response_length
        found = episodes().grade(question, replies)
        return AgentLoopOutput(
            prompt_ids=tokens[: len(tokens) - len(mask)],
            response_ids=tokens[len(tokens) - len(mask) :][:length],
            response_mask=mask[:length],
            response_logprobs=logprobs[:length] if logprobs else None,
            reward_score=found.reward,
            num_turns=2 * len(replies),
            metrics={},
            extra_fields={"turn_scores": [], "tool_rewards": [], "calls": found.calls, "f1": found.f1},
        )
'''

AGENT_LOOPS = """\
- name: lookup
  _target_: agent_loop.LookupAgentLoop
"""

VERL_REWARD = '''\
"""The reward of memometer, as verl calls it."""

import json

from memometer.train.reward import Case, grade


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    found = grade(Case.of_json(json.loads(extra_info["case"])), solution_str)
    unparseable = float(found.status == "unparseable")
    return {"score": found.reward, "strict": found.strict, "f1": found.f1, "unparseable": unparseable}
'''

TASKSET = '''\
"""The reading prompts of memometer as a verifiers taskset."""

import json
from pathlib import Path

import verifiers.v1 as vf

from memometer.train.reward import Case, grade

__all__ = ["ReadingTaskset"]


class ReadingData(vf.TaskData):
    """The facts of a prompt, as a JSON text."""

    case: str


class ReadingTask(vf.Task[ReadingData]):
    def _grade(self, trace):
        return grade(Case.of_json(json.loads(self.data.case)), trace.last_reply)

    @vf.reward(weight=1.0)
    async def reading(self, trace: vf.Trace) -> float:
        return self._grade(trace).reward

    @vf.metric
    async def strict(self, trace: vf.Trace) -> float:
        return self._grade(trace).strict

    @vf.metric
    async def f1(self, trace: vf.Trace) -> float:
        return self._grade(trace).f1


class ReadingConfig(vf.TasksetConfig):
    split: str = "train"  # or validation


class ReadingTaskset(vf.Taskset[ReadingTask, ReadingConfig]):
    def load(self) -> list[ReadingTask]:
        lines = (Path(__file__).parent / f"{self.config.split}.jsonl").read_text(encoding="ascii").splitlines()
        return [ReadingTask(ReadingData(**json.loads(line)), self.config.task) for line in lines]
'''
