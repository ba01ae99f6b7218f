"""``ppa-fast train``: the command for a machine, and the errors before it starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ppa_fast import cli, settings
from ppa_fast.settings import LaunchSettings
from ppa_fast.training import launch
from ppa_fast.training.checkpoint import Checkpoints
from ppa_fast.training.config import read_config
from ppa_fast.training.launch import place
from tests.conftest import write_config
from tests.training.harness import metrics

PORT = r"--master_port \d+"


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that the machine has this number of GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(launch, "uses_cuda", lambda: count > 0)
        monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: count)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return pretend


@pytest.mark.parametrize(
    ("found", "asked", "visible", "ranks", "launcher", "config"),
    [
        (0, None, None, 1, "", "cpu.json"),
        (0, 1, None, 1, "", "cpu.json"),
        (0, 2, None, 2, f"--num_gpus 2 {PORT}", "cpu.json"),
        (1, None, None, 1, f"--num_gpus 1 {PORT}", "gpu1.json"),
        (8, None, None, 8, f"--num_gpus 8 {PORT}", "gpu8.json"),
        (8, 1, None, 1, f"--num_gpus 1 {PORT}", "gpu1.json"),
        (2, None, "3,5", 2, f"--include localhost:3,5 {PORT}", "gpu8.json"),
        (2, 1, "3,5", 1, f"--include localhost:3 {PORT}", "gpu1.json"),
    ],
)
def test_placement_follows_the_devices_of_the_machine(
    gpus, monkeypatch, found, asked, visible, ranks, launcher, config
):
    gpus(found)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    placement = place(LaunchSettings(num_gpus=asked))
    assert (placement.ranks, placement.config) == (ranks, config)
    assert re.fullmatch(launcher, " ".join(placement.launcher))


@pytest.mark.parametrize("name", ["cpu.json", "gpu1.json", "gpu8.json"])
def test_the_provided_configurations_are_part_of_the_package(name, tmp_path):
    file = launch.PACKAGE / "ds_configs" / name
    assert file.read_text() == (Path(__file__).parents[2] / "ds_configs" / name).read_text()
    assert read_config(file, 8 if name == "gpu8.json" else 1, tmp_path).batch > 0


def test_the_slots_of_a_hostfile_are_added(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# two nodes\nnode1 slots=8\n\nnode2 slots=4\n")
    assert place(LaunchSettings(hostfile=file)) == launch.Placement(12, ("--hostfile", str(file)), "gpu8.json")


def dry(arguments: str, capsys) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *arguments.split(), "--dry-run"])
    assert caught.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    return shlex.split(line)


def test_a_dry_run_prints_a_command_that_training_parses(gpus, capsys, monkeypatch):
    gpus(8)
    given = "--model org/encoder --data stores/mine --no-tlm --queue_size 64 --eval-pairs en-de:a,b en-fr:c"
    words = dry(given, capsys)
    script = words.index(str(launch.PACKAGE / "train.py") if "ppa_fast/train.py" not in words else "ppa_fast/train.py")
    assert words[:2] == ["deepspeed", "--quiet"]
    trained = []
    monkeypatch.setattr("ppa_fast.training.trainer.train", trained.append)
    assert cli.main_train(["--local_rank=0", *words[script + 1 :]]) == 0
    (chosen,) = trained
    assert (chosen.model, chosen.data, chosen.output) == ("org/encoder", ["stores/mine"], "runs/encoder")
    assert (chosen.tlm, chosen.moco, chosen.queue_size) == (False, True, 64)
    assert chosen.eval_pairs == ["en-de:a,b", "en-fr:c"]
    assert Path(chosen.deepspeed_config).name == "gpu8.json"
    assert Path(chosen.deepspeed_config).is_file()


def test_values_of_a_settings_file_are_not_repeated_as_flags(gpus, capsys, tmp_path):
    gpus(0)
    file = tmp_path / "settings.yaml"
    chosen = settings.Settings(model="m", data=["d"], output="o", deepspeed_config="ds.json")
    settings.write_yaml(chosen, file)
    words = dry(f"--settings {file} --steps 7 --debug", capsys)
    assert words[0] == "python"
    assert words[2:] == [f"--settings={file}", "--steps=7", "--debug"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "model: not given"),
        ("--model m", "data: not given"),
        ("--model MODEL --data STORE --steps 0", "steps: found 0"),
        ("--model MODEL --data STORE --num-gpus 0", "num_gpus: found 0, expected at least 1"),
        ("--model MODEL --data ./absent", "absent: no such store"),
        ("--model MODEL --data STORE --deepspeed_config absent.json", "absent.json: No such file"),
        (
            "--model MODEL --data STORE --deepspeed_config ds.json --num-gpus 2",
            "train_batch_size: found 15, expected a multiple",
        ),
        ("--model MODEL --data STORE --deepspeed_config ds.json --queue-size 3", "queue_size: found 3"),
        ("--model MODEL --data STORE --hostfile absent", "--hostfile absent: No such file"),
        ("--model MODEL --data STORE --hostfile hosts", "hosts:2: found 'node2 8', expected a line such as"),
    ],
)
def test_invalid_input_is_an_error_before_anything_starts(
    gpus, tiny, tmp_path, capsys, monkeypatch, arguments, message
):
    gpus(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    write_config(tmp_path / "ds.json", 15)
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 8\n")
    paths = {"STORE": str(tiny.store), "MODEL": str(tiny.model)}
    assert cli.main(["train", *(paths.get(word, word) for word in arguments.split())]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_more_ranks_than_gpus_are_an_error(gpus):
    gpus(2)
    with pytest.raises(ValueError, match="--num-gpus: found 3, expected 1 to 2"):
        place(LaunchSettings(num_gpus=3))


def test_a_rank_is_not_launched_again(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["train", "--model", "m", "--data", "d"]) == 2
    assert "RANK: found '0', expected it unset" in capsys.readouterr().err


def test_the_status_of_the_command_is_returned():
    assert launch._run([sys.executable, "-c", "raise SystemExit(2)"]) == 2
    assert launch._run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_starts_gives_its_exit_status(number):
    code = f"import os, signal; os.kill(os.getppid(), {int(number)}); signal.pause()"
    before = signal.getsignal(number)
    assert launch._run([sys.executable, "-c", code, "train.py"]) == 128 + number
    assert signal.getsignal(number) == before


def start(tiny, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a ``ppa-fast train`` that would run for hours; returns after a few steps."""
    config = write_config(folder / "ds.json")
    command = [sys.executable, "-c", "import sys; from ppa_fast.cli import main; sys.exit(main())", "train"]
    command += ["--model", tiny.model, "--data", tiny.store, "--output", folder / "run", "--deepspeed_config", config]
    command += ["--queue-size", "16", "--steps", "1000000", "--schedule", "constant", "--log-every", "1", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    log = folder / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        os.sched_yield()
    return process


@pytest.mark.parametrize(
    ("ranks", "number"),
    [
        ("1", signal.SIGINT),
        pytest.param("2", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_ranks_after_a_save(tiny, tmp_path, ranks, number):
    with start(tiny, tmp_path, "--num-gpus", ranks) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, ""), err
    first, *_, stopping, stopped = err.splitlines()
    assert first.startswith("$ deepspeed --quiet --num_gpus 2" if ranks == "2" else "$ python ")
    assert stopping.startswith("stopping: ")
    lines = metrics(tmp_path / "run")
    assert stopped == f"stopped by a signal, saved at step {lines[-1]['step']} of 1000000: {tmp_path / 'run'}"
    latest = Checkpoints(tmp_path / "run").named("latest")
    assert json.loads((latest / "state.json").read_text())["step"] == lines[-1]["step"]
    assert lines[-1]["world_size"] == int(ranks)


@pytest.mark.slow
def test_a_second_ctrl_c_kills(tiny, tmp_path):
    with start(tiny, tmp_path) as process:
        (child,) = launch.psutil.Process(process.pid).children()
        child.suspend()  # a step that does not finish
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while not process.stderr.readline().startswith("stopping"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not child.is_running()
