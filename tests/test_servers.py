"""Model servers as people have them: each fault ends a run early with its cause and flag, each peculiarity is met."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memometer import cli
from memometer.harness.model_check import ModelCheck, check_reader
from memometer.models import encoders, resolve_models
from memometer.models.errors import redact
from memometer.models.replies import without_thoughts, without_wrappers
from tests import commands
from tests.commands import Finished
from tests.evaluation import evaluate, everything, records, results
from tests.model_server import (
    ENDED,
    MENDED,
    ModelServer,
    chat,
    needs_room,
    of_json,
    prompt_of,
    serving,
)

ABOUT_THE_PROMPT = [kind for kind in ENDED if kind.startswith("context")]


def checked(api_base: str, *, room: int = 4096, **options: Any) -> ModelCheck:
    model = resolve_models.load("openai/m", api_base=api_base, retries=0, timeout_seconds=0.5, **options)
    return check_reader(model, room=room)


def run(server: ModelServer, folder: Path, *words: str, **environment: str) -> Finished:
    """Evaluate the system `recent` on the sample; two baselines are asked as well."""
    given = ["--model", "openai/m", "--tokenizer", "o200k_base", "--context-window", "8000", "--budget-tokens", "150"]
    return evaluate(
        *given, "--api-base", server.url, "--systems", "recent", "--retries", "0", "--no-mlflow", "--run-dir", "run",
        *words, cwd=folder, **environment,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in ENDED if kind not in ABOUT_THE_PROMPT])
def test_a_fault_is_found_by_the_first_call(kind: str) -> None:
    answer, words = ENDED[kind]
    with serving(answer) as server:
        found = checked(server.url)
    assert server.calls <= 2, "the second one has room for thoughts"
    assert all(word in found.failure for word in words), found.failure
    assert "\n" not in found.failure
    assert len(found.failure) < 700


@pytest.mark.parametrize("kind", MENDED)
def test_a_peculiar_server_answers(kind: str) -> None:
    with serving(MENDED[kind]) as server:
        found = checked(server.url)
        assert not found.failure
        assert found.reply == "Sourdough"
        asked = server.calls
        assert checked(server.url).reply == "Sourdough"
    assert asked <= 4
    assert bool(found.usage.unreported) == ("usage" in kind and kind != "usage of texts")


@pytest.mark.parametrize("kind", ["thoughts, null", "detail", "429", *ABOUT_THE_PROMPT])
def test_a_run_ends_early(kind: str, tmp_path: Path) -> None:
    answer, words = ENDED[kind]
    with serving(answer) as server:
        done = run(server, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert server.calls <= 12
    assert all(word in done.stdout for word in words)
    assert "--resume run" in done.stdout


def test_a_limit_that_the_user_chose_is_not_raised(tmp_path: Path) -> None:
    with serving(needs_room) as server:
        done = run(server, tmp_path, "--max-answer-tokens", "200")
        assert done.returncode == 1
        assert "raise --max-answer-tokens (now 200)" in done.stdout
        assert server.calls == 1


def test_thoughts_get_room_and_are_accounted_apart(tmp_path: Path) -> None:
    with serving(needs_room) as server:
        done = run(server, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {body["max_tokens"] for body in server.requests[1:]} == {server.requests[-1]["max_tokens"]}
    assert 4000 < server.requests[-1]["max_tokens"] <= 8000
    found = [record for record in records(tmp_path / "run") if record["calls"]]
    assert {(record["answer"], record["reasoning_tokens"], record["finish_reason"]) for record in found} == {
        ("Sourdough", 300, "stop")
    }
    assert results(tmp_path / "run")["cost"]["total"]["reasoning_tokens"] == 300 * len(found)


def test_a_cut_answer_is_known_by_its_finish_reason(tmp_path: Path) -> None:
    """A server that ignores the limit writes more tokens than the limit, and is not cut."""
    with serving(lambda body: chat("a long answer", out=900)) as server:
        run(server, tmp_path)
        assert not any(record["truncated"] for record in records(tmp_path / "run"))
    with serving(lambda body: chat("a long", finish="length", out=10)) as server:
        run(server, tmp_path, "--run-dir", "cut")
    found = [record for record in records(tmp_path / "cut") if record["calls"]]
    assert all(record["truncated"] and record["finish_reason"] == "length" for record in found)


def test_a_server_that_stops_ends_the_run(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        return chat("Sourdough") if server.calls < 10 else of_json({"error": "out of memory"}, 500)

    with serving(answer) as server:
        done = run(server, tmp_path)
    assert done.returncode == 1
    assert "16 calls in a row failed" in done.stdout
    assert "out of memory" in done.stdout
    assert server.calls < 9 + 16 + 4


# ---------------------------------------------------------------- addresses


def test_an_address_without_its_path_is_named() -> None:
    with serving(lambda body: chat("Oslo")) as server:
        found = checked(server.url.removesuffix("/v1"))
    assert server.calls == 0
    assert f"--api-base {server.url}" in found.failure


@pytest.mark.parametrize("api_base", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
def test_a_server_that_is_not_there(api_base: str) -> None:
    found = checked(api_base)
    assert "--api-base" in found.failure
    assert ("Connection refused" in found.failure) or ("DNS" in found.failure)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, with its key, for 127.0.0.1."""
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "loopback.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[ModelServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(lambda body: chat("Oslo"), certificate=context) as server:
        yield server


def test_a_certificate_must_be_trusted(
    tls_server: ModelServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "SSL_CERT_FILE" in checked(tls_server.url).failure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    found = checked(tls_server.url)
    assert not found.failure
    assert found.reply == "Oslo"


def test_the_wrong_scheme_is_named(tls_server: ModelServer) -> None:
    assert "use https://" in checked(tls_server.url.replace("https", "http")).failure
    with serving(lambda body: chat("Oslo")) as server:
        assert "use http://" in checked(server.url.replace("http", "https")).failure


def test_no_proxy_comes_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda body: chat("Oslo")) as server, serving(lambda body: chat("proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert checked(server.url).reply == "Oslo"
    assert not proxy.paths


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    found = checked("http://models.example.org/v1")
    assert "the proxy 127.0.0.1:9" in found.failure
    assert "NO_PROXY" in found.failure


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_the_environment_names_the_server(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda body: chat("Oslo")) as server:
        monkeypatch.setenv(variable, server.url)
        model = resolve_models.load("openai/gpt-4o-mini", retries=0)
        assert check_reader(model).reply == "Oslo"
        assert model.addresses == (server.url,)
        assert model.price is not None
        assert model.price.source == "local", "not the price of OpenAI's model"


@pytest.mark.parametrize("provider", ["hosted_vllm", "lm_studio", "ollama_chat"])
def test_other_names_of_the_same_protocol(provider: str) -> None:
    with serving(lambda body: chat("Oslo")) as server:
        address = server.url.removesuffix("/v1") if provider == "ollama_chat" else server.url
        model = resolve_models.load(f"{provider}/m", api_base=address, retries=0)
        assert check_reader(model).reply == "Oslo"
    assert server.requests[0]["model"] == "m"
    assert server.requests[0]["max_tokens"] == 64


def test_several_servers_share_the_calls(tmp_path: Path) -> None:
    import time

    def slow(body: Any) -> Any:
        time.sleep(0.02)
        return chat("Sourdough")

    with serving(lambda body: chat("Sourdough")) as fast, serving(slow) as other, serving(slow) as gone:
        dead = "http://127.0.0.1:9/v1"
        gone.answer = lambda body: of_json({}, 200)
        three = ModelServer(slow, url=f"{fast.url},{dead},{other.url}")
        done = run(three, tmp_path, "--num-threads", "8")
        assert done.returncode == 1, "every address must be reachable at the start"
        assert dead in done.stdout
        done = run(ModelServer(slow, url=f"{fast.url},{other.url}"), tmp_path, "--num-threads", "8", "--run-dir", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert fast.calls + other.calls == 39 + 1
    assert fast.calls > other.calls > 5, "the least busy gets the next call"


def test_a_call_goes_on_where_a_server_is_left() -> None:
    with serving(lambda body: chat("Oslo")) as server:
        lm = resolve_models.load("openai/m", api_base=f"http://127.0.0.1:9/v1,{server.url}", retries=0).lm
        assert [lm("Who?") for _ in range(4)] == [["Oslo"]] * 4
    assert server.calls == 4


# ---------------------------------------------------------------- prompts that are cut


def size(body: Any) -> int:
    return len(prompt_of(body)) // 4


@pytest.mark.parametrize("unit", ["tokens", "bytes"])
def test_a_server_that_cuts_prompts_silently_makes_a_run_invalid(unit: str, tmp_path: Path) -> None:
    """As Ollama does with its default window: it drops the front of the prompt and answers."""
    words = ["--systems", "full_context"]
    if unit == "bytes":
        words += ["--tokenizer", ""]
    with serving(lambda body: chat("Sourdough", prompt=min(size(body), 200))) as server:
        done = run(server, tmp_path, *words)
        assert done.returncode == 3, done.stdout + done.stderr
        found = results(tmp_path / "run")["cut_prompts"]
        assert (found["n"], found["reported"], found["unit"]) == (13, 200, unit)
        assert "OLLAMA_CONTEXT_LENGTH" in (tmp_path / "run" / "table.txt").read_text()
        server.answer = lambda body: chat("Sourdough", prompt=size(body))
        assert run(server, tmp_path, *words, "--run-dir", "whole").returncode == 0
        assert run(server, tmp_path, *words, "--run-dir", "some", "--fail-on-error", "0.5").returncode == 0
    assert results(tmp_path / "whole")["cut_prompts"] is None


def test_all_rounds_of_a_reading_are_compared(tmp_path: Path) -> None:
    words = ["--systems", "adaptive", "--rounds", "2", "--num-test", "2", "--budget-tokens", "400"]
    reply = "1\nStatus: more\nLookup: bread\nAnswer: Sourdough"
    with serving(lambda body: chat(reply, prompt=min(size(body), 50))) as server:
        assert run(server, tmp_path, *words).returncode == 3
        server.answer = lambda body: chat(reply, prompt=size(body))
        assert run(server, tmp_path, *words, "--run-dir", "whole").returncode == 0
    cut = results(tmp_path / "run")["cut_prompts"]
    assert cut["counted"] > cut["reported"] == 100, "two calls"
    assert results(tmp_path / "whole")["cut_prompts"] is None


def test_a_few_cut_prompts_are_a_caution(tmp_path: Path) -> None:
    with serving(lambda body: chat("Sourdough", prompt=min(size(body), 200))) as server:
        done = run(server, tmp_path, "--systems", "full_context", "--fail-on-error", "0.5")
    assert done.returncode == 0
    assert "CAUTION: The server cut 13 of " in " ".join(done.stdout.replace("SAMPLE", "").split())


# ---------------------------------------------------------------- facts and secrets


def test_a_server_names_its_window_and_tokenizer(tmp_path: Path) -> None:
    entry = {"id": "m", "object": "model", "root": "Qwen/Qwen2.5-3B-Instruct", "max_model_len": 900}
    with serving(lambda body: chat("Oslo"), models={"data": [entry]}) as server:
        done = evaluate("--model", "openai/m", "--api-base", server.url, "--budget-tokens", "5000", "--retries", "0",
                        "--systems", "recent", "--no-mlflow", "--run-dir", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "limit of the context window" in done.stdout
    assert "--tokenizer Qwen/Qwen2.5-3B-Instruct" in " ".join(done.stdout.replace("SAMPLE", "").split())


def test_a_server_with_one_model_answers_to_any_name() -> None:
    entry = {"id": "/models/tiny.gguf", "max_model_len": 4096}
    with serving(lambda body: chat("Oslo"), models={"data": [entry]}) as server:
        found = checked(server.url)
    assert found.facts.lists_model is False
    assert found.facts.context_tokens == 4096
    assert not found.failure


def test_no_key_of_an_error_is_written_down(tmp_path: Path) -> None:
    secrets = ["sk-proj-abcdefghij0123456789", "gsk_abcdefghij0123456789", "AIzaSyA0123456789abcdefghijklmnopqrstuv",
               "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl", "hunter2hunter2"]  # fmt: skip
    text = f"bad key {secrets[0]}, {secrets[1]}; ?key={secrets[2]} Authorization: Bearer {secrets[3]} for {secrets[4]}"
    assert not [secret for secret in secrets[:4] if secret in redact(text)]
    for status in (401, 500):
        with serving(lambda body, status=status: of_json({"detail": text}, status)) as server:
            done = run(server, tmp_path, "--run-dir", f"run-{status}", OPENAI_API_KEY=secrets[4])
        assert done.returncode == 1
        assert not [secret for secret in secrets if secret in done.stdout + done.stderr + everything(tmp_path)]
        assert server.headers[0]["Authorization"] == f"Bearer {secrets[4]}"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<think>a</think>\nSourdough", "Sourdough"),
        ("I look.\n</think>\n\nSourdough", "Sourdough"),
        ("<thinking>a</thinking><reflection>b</reflection>Sourdough", "Sourdough"),
        ("[THINK]x[/THINK]Sourdough", "Sourdough"),
        ("<|channel|>analysis<|message|>We<|end|><|start|>assistant<|channel|>final<|message|>Sourdough<|return|>",
         "Sourdough"),
        ("analysisWe need itassistantfinalSourdough", "Sourdough"),
        ("**Answer:** Sourdough", "Sourdough"),
        ("```\nAnswer: Sourdough\n```", "Sourdough"),
        ("<answer>Sourdough</answer>", "Sourdough"),
        ("The tag <think>x</think> is odd", "The tag <think>x</think> is odd"),
        ("He wrote </think> there", "He wrote </think> there"),
        ("use ```x``` now", "use ```x``` now"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("analysis of bread", "analysis of bread"),
        ("My answer: Sourdough", "My answer: Sourdough"),
        ("<think>no end", ""),
        ("Answer:", ""),
    ],
)  # fmt: skip
def test_thoughts_and_wrappers_are_removed_around_an_answer_only(reply: str, answer: str) -> None:
    assert without_wrappers(without_thoughts(reply)) == answer


def test_the_prompt_of_the_first_call_is_the_readers() -> None:
    with serving(lambda body: chat("Oslo", prompt=150)) as server:
        found = checked(server.url, tokenizer="o200k_base")
    assert prompt_of(server.requests[0]).endswith("Question: Where does Ann live?\n\nAnswer:")
    assert 100 < found.counted < 200


# ---------------------------------------------------------------- judges and searches

JUDGE = ["--judge-model", "openai/judge", "--judge-api-base"]


def judged(server: ModelServer, judge: ModelServer, folder: Path, *words: str) -> Finished:
    return run(server, folder, *JUDGE, judge.url, *words, EMBEDDED_MODELS_DIR=str(folder / "models"))


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: chat(None, finish="length", out=16, reasoning_content="First I look."),
        lambda body: chat("The answer is correct, because", finish="length", out=16),
    ],
    ids=["thoughts", "prose"],
)
@pytest.mark.parametrize("more", [(), ("--no-calibration",)], ids=["calibrated", "not"])
def test_a_cut_judge_ends_the_run_before_an_answer_is_paid_for(answer: Any, more: Any, tmp_path: Path) -> None:
    with serving(lambda body: chat("Sourdough")) as server, serving(answer) as judge:
        done = judged(server, judge, tmp_path, *more)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "--judge-max-tokens" in done.stdout
        assert judge.calls <= 2
        assert server.calls == 1, "the first call"
        judge.answer = lambda body: chat("yes", out=1)
        done = evaluate("--resume", "run", cwd=tmp_path, EMBEDDED_MODELS_DIR=str(tmp_path / "models"))
    if not more:  # it is forecast and measured, and accepts everything
        assert "measured first" in done.stdout
        assert done.returncode == 1
        assert "--allow-failed-calibration" in done.stdout
        assert server.calls == 2
    else:
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_judge_that_thinks_gets_room(tmp_path: Path) -> None:
    with serving(lambda body: chat("Sourdough")) as server, serving(needs_room) as judge:
        done = judged(server, judge, tmp_path, "--no-calibration")
    assert "writes thoughts first" in done.stdout
    assert judge.requests[0]["max_tokens"] == 16
    assert judge.requests[-1]["max_tokens"] > 300


def test_the_judge_has_the_readers_address_if_it_is_the_same_model(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        return chat("no" if "Verdict:" in prompt_of(body) else "Sourdough")

    with serving(answer) as server:
        done = run(server, tmp_path, "--judge-model", "openai/m", "--no-calibration")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum("Verdict:" in prompt_of(body) for body in server.requests) > 11


def test_a_judge_that_dies_does_not_take_all_answers_with_it(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        return chat("yes") if judge.calls == 1 else of_json({"message": "the disk is full"}, 500)

    with serving(lambda body: chat("Sourdough")) as server, serving(answer) as judge:
        done = judged(server, judge, tmp_path, "--no-calibration")
    assert done.returncode == 1
    assert "judge: the first 8 calls failed" in done.stdout
    assert "the disk is full" in done.stdout
    assert server.calls <= 1 + 8 + 4


@pytest.mark.parametrize("kind", ["thoughts, null", "context, vLLM", "empty"])
def test_a_search_over_a_server_without_answers_is_invalid(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from locomo.dataset import SAMPLE

    monkeypatch.chdir(tmp_path)
    answer, words = ENDED[kind]
    with serving(answer) as server:
        code = commands.optimize([
            "--data", str(SAMPLE), "--model", "openai/m", "--api-base", server.url, "--tokenizer", "o200k_base",
            "--context-window", "8000", "--retries", "0", "--num-examples", "4", "--num-validation", "4",
            "--budget-tokens", "300", "--no-mlflow", "--run-dir", "run",
        ])  # fmt: skip
    out, err = capfd.readouterr()
    assert code == 3, out + err
    assert server.calls <= 12
    assert all(word in err for word in words), err
    assert "optimize.py --resume run" in err
    assert not Path("optimized_memory_qa.json").exists()


def test_a_resumed_search_keeps_the_room_for_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from locomo.dataset import SAMPLE

    monkeypatch.chdir(tmp_path)

    def answer(body: Any) -> Any:
        return needs_room(body) if server.calls < 8 else of_json({"error": "unpaid"}, 402)

    with serving(answer) as server:
        code = commands.optimize([
            "--data", str(SAMPLE), "--model", "openai/m", "--api-base", server.url, "--tokenizer", "o200k_base",
            "--context-window", "8000", "--retries", "0", "--num-examples", "4", "--num-validation", "4",
            "--budget-tokens", "300", "--no-mlflow", "--run-dir", "run", "--num-threads", "1",
        ])  # fmt: skip
        assert code == 1, capfd.readouterr()
        stored = Path("run/calls.jsonl").read_text().count("usage")
        assert stored == 5, "two first calls, and one that failed"
        assert commands.optimize(["--resume", "run"]) == 1
        assert server.calls == 9, "no stored call is repeated"


def test_the_check_is_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    models = {"data": [{"id": "m", "max_model_len": 32768}]}
    with serving(needs_room, models=models) as server:
        assert cli.main(["check", "--model", "openai/m", "--api-base", server.url]) == 0
        out = capsys.readouterr().out
        assert len(out.splitlines()) <= 12
        for word in ("32,768", "listed", "reasoning" if "reasoning" in out else "thoughts", "bytes", "tokens a second"):
            assert word in out
        server.answer = lambda body: of_json({"detail": "no access"}, 403)
        assert cli.main(["check", "--model", "openai/x", "--api-base", server.url]) == 1
        out = capsys.readouterr().out
        assert "not listed; the server has m" in out
        assert "no access" in out


def test_embeddings_have_an_address_of_their_own(tmp_path: Path) -> None:
    with serving(lambda body: chat("Oslo")) as server:
        encoder = encoders.load("openai/vectors", api_base=server.url, cached=False)
        assert encoder(["one", "two"]).shape == (2, 2)
        assert "/v1/embeddings" in server.paths
        with pytest.raises(encoders.EncoderUnavailable, match="API base"):
            encoders.load("openai/vectors", api_base="no address", cached=False)
    done = evaluate("--recall-only", "--encoder-api-base", "http://127.0.0.1:9/v1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--encoder" in done.stderr
