"""Training with torchrun: two real processes learn what one learns, share out its data, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch
from conftest import ROOT, Said, make_texts, rows_of, write_jsonl
from tuning_helpers import parameters

from lm_retrieval.checkpoint import is_checkpoint, save_checkpoint
from lm_retrieval.cli import launch as launch_module
from lm_retrieval.config import EncoderConfig, LstmConfig, RunConfig, TrainingConfig
from lm_retrieval.models import build_model
from lm_retrieval.runtime import available_cores, thread_count
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.curves import read_metrics

STEPS = 8
COMMON = (
    f"training.max_steps={STEPS}",
    "training.max_epochs=1000",
    "training.precision=float32",
    "training.accumulation_steps=2",
    "training.log_interval_steps=1",
    "training.eval_interval_steps=4",
    "training.warmup_steps=2",
    "training.learning_rate=0.01",
    "training.sample_tokens=0",
)
TRAIN = (
    *COMMON,
    "model.embedding_dim=24",
    "model.hidden_dim=24",
    "tokenizer.vocab_size=300",
    "training.batch_size=8",
    "training.sequence_length_tokens=16",
)
TUNE = (
    *COMMON,
    "training.batch_size=16",
    "training.weight_decay=0",
    "tuning.train_language_model=true",
    "tuning.token_dropout=0.1",
    "tuning.spans_per_document=2",
)
STEADY = (*TRAIN, "model.dropout=0")
NEXT_TOKEN = (*TUNE, "tuning.next_token_weight=0.5")
NEGATIVES = (*TUNE, "tuning.hard_negatives=2", "tuning.contrastive_weight=2")


class World(NamedTuple):
    """Where everything is, and what became of the jobs of two processes."""

    folder: Path
    outcomes: dict[str, str]


def train(output: str, settings: tuple[str, ...], *options: str, corpus: str = "text.jsonl") -> list[str]:
    chosen = [word for setting in settings for word in ("--set", setting)]
    return ["train", "empty.toml", "--corpus", corpus, "--output", output, "--quiet", *chosen, *options]


def tune(output: str, settings: tuple[str, ...], *options: str, corpus: str = "labelled") -> list[str]:
    chosen = [word for setting in settings for word in ("--set", setting)]
    return ["tune", corpus, "--from", "start", "--output", output, "--config", "empty.toml", *chosen, *options]


LSI = ("--labels", "none", "--teacher", "lsi")
LABELS = ("--labels", "train", "--teacher", "lsi")
LITTLE = (*STEADY, "training.accumulation_steps=1", "training.batch_size=1000")  # 25 rows alone, 24 together
SETTINGS = {  # runs that one process and two make alike
    "train": train("{}/train", STEADY),
    "tune-next-token": tune("{}/tune-next-token", NEXT_TOKEN, *LSI),
    "tune-negatives": tune("{}/tune-negatives", NEGATIVES, *LABELS),
}
UNEVEN = (*STEADY, "training.batch_size=6")
# what two processes do, one after the other; a number is the step to stop at
JOBS: dict[str, tuple[list[str], int | None]] = {
    **{name: ([word.format("two") for word in arguments], None) for name, arguments in SETTINGS.items()},
    "dropout": (train("dropout", TRAIN), None),
    "dropout-first": (train("dropout-parts", TRAIN), 3),
    "dropout-rest": (train("dropout-parts", TRAIN, "--resume"), None),
    "tune-first": (tune("tune-parts", NEXT_TOKEN, *LSI), 3),
    "tune-rest": (tune("tune-parts", NEXT_TOKEN, *LSI, "--resume"), None),
    "one-then-two": (train("one-then-two", STEADY, "--resume"), None),
    "two-then-one": (train("two-then-one", STEADY), 3),
    "little": (train("little", LITTLE, "--resume", corpus="few.jsonl"), None),
    "taken": (train("two/train", STEADY), None),
    "uneven": (train("uneven", UNEVEN), None),
    "uneven-tune": (tune("uneven", (*TUNE, "training.batch_size=6"), *LSI), None),
    "missing": (tune("missing", TUNE, corpus="nowhere"), None),
    "unknown": (train("unknown", (*STEADY, "training.batchsize=1")), None),
    "nothing": (tune("nothing", TUNE, *LSI, "--resume"), None),
    "short": (train("short", STEADY, corpus="short.jsonl"), None),
    "exact": (train("exact", (*STEADY, "training.precision=float16")), None),
}


def alone(arguments: list[str], *, stop_after: int | None = None) -> None:
    """One process: this one."""
    import torchrun_worker

    assert torchrun_worker.outcome({"arguments": arguments, "stop_after": stop_after}) in ("done", "exit 130")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """One thread in this process too, and the folder to work in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LMR_THREADS", "1")
        yield


def launcher(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *(options or ("--standalone", "--nproc-per-node=2"))]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LMR_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> World:
    """The same runs by one process and by two, and what only two can do."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "empty.toml").write_text("")
    write_jsonl(folder / "text.jsonl", [{"_id": str(n), "text": text} for n, text in enumerate(make_texts(100))])
    write_jsonl(folder / "short.jsonl", [{"text": "a few words"}])
    write_jsonl(folder / "few.jsonl", [{"_id": str(n), "text": text} for n, text in enumerate(make_texts(5))])
    write_labelled(folder / "labelled")
    write_start(folder / "start", tokenizer)
    with inside(folder):
        for arguments in SETTINGS.values():
            alone([word.format("one") for word in arguments])
        alone(train("one-then-two", STEADY), stop_after=3)
        alone(train("little", LITTLE, corpus="few.jsonl"), stop_after=3)
        jobs = [{"arguments": arguments, "stop_after": stop} for arguments, stop in JOBS.values()]
        Path("jobs.json").write_text(json.dumps(jobs))
        script = str(ROOT / "tests" / "torchrun_worker.py")
        command = [*launcher(), script, "jobs.json", "outcomes"]
        ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
        alone(train("two-then-one", STEADY, "--resume"))
    first, second = (json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in (0, 1))
    assert [text.startswith("done") for text in first] == [text.startswith("done") for text in second]
    said = {name: f"{one} | {two}" for name, one, two in zip(JOBS, first, second, strict=True)}
    return World(folder, said)


def write_labelled(folder: Path) -> None:
    """Documents of very different lengths, and so few labelled queries that they share their batches with others.

    Only pairs with a label have hard negatives: one process has more of them than the other.
    """
    rows = rows_of()
    for number, row in enumerate(rows):
        row["text"] = " ".join(str(row["text"]).split(" ")[: 8 + number % 40])
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"who knows {n}?"} for n in range(80)])
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(12)), "q1\td5\t1", "q2\td9\t1"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")


def write_start(folder: Path, tokenizer: Tokenizer) -> None:
    torch.manual_seed(4)
    model = LstmConfig(embedding_dim=32, hidden_dim=32, num_layers=1, dropout=0.0)
    config = RunConfig(model=model, encoder=EncoderConfig(max_length_tokens=32, overlap_tokens=4))
    network = build_model(model, vocab_size=tokenizer.vocab_size)
    save_checkpoint(folder, model=network, tokenizer=tokenizer, config=config)


def curve(folder: Path) -> list[tuple[float, ...]]:
    """Losses, gradient norms and held-out losses by step."""
    names = ("step", "loss", "gradient_norm", "validation_loss", "validation_accuracy", "validation_perplexity")
    return [tuple(record[name] for name in names if name in record) for record in read_metrics(folder)]


def assert_alike(found: Path, expected: Path, *, tolerance: float = 1e-4) -> None:
    curves = curve(found), curve(expected)
    assert len(curves[0]) == len(curves[1]) == STEPS + 2
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=tolerance / 10, abs=tolerance)
    weights = parameters(found), parameters(expected)
    for name, tensor in weights[1].items():
        assert torch.allclose(weights[0][name], tensor, rtol=0, atol=10 * tolerance), name


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_learn_what_one_learns(world: World, name: str) -> None:
    assert world.outcomes[name] == "done | done"
    assert_alike(world.folder / "two" / name, world.folder / "one" / name)


@pytest.mark.parametrize("name", SETTINGS)
def test_only_one_process_writes_and_the_same_files_as_one_alone(world: World, name: str) -> None:
    one, two = ({path.name for path in (world.folder / side / name).iterdir()} for side in ("one", "two"))
    assert one == two


def test_a_run_of_two_processes_that_was_interrupted_goes_on_exactly(world: World) -> None:
    for name in ("dropout-first", "tune-first"):
        assert world.outcomes[name] == "exit 130 | exit 130"
    for whole, parts in (("dropout", "dropout-parts"), ("two/tune-next-token", "tune-parts")):
        assert curve(world.folder / parts) == curve(world.folder / whole)
        weights = parameters(world.folder / whole)
        for name, tensor in parameters(world.folder / parts).items():
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("name", ["one-then-two", "two-then-one"])
def test_a_run_goes_on_with_another_number_of_processes(world: World, name: str) -> None:
    assert_alike(world.folder / name, world.folder / "one" / "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("little", "share it out in other steps than 1 did; resume with --nproc-per-node=1"),
        ("taken", "two/train: holds a checkpoint already"),
        ("uneven", "training.batch_size 6 cannot be divided into 2 micro-batches on 2 processes"),
        ("uneven-tune", "training.batch_size 6 cannot be divided into 2 micro-batches on 2 processes"),
        ("missing", "nowhere: no such file or folder"),
        ("unknown", "unknown key 'training.batchsize'"),
        ("nothing", "nothing: nothing to resume"),
        ("short", "tokens of text"),
        ("exact", "float16 needs a GPU"),
    ],
)
def test_an_error_of_the_first_process_ends_the_other_too(world: World, name: str, message: str) -> None:
    first, second = world.outcomes[name].split(" | ")
    assert message in first
    assert second == f"PeerError: process 0: {first.partition(': ')[2]}"


def test_the_program_says_an_error_once_and_ends_at_once(world: World) -> None:
    arguments = train(str(world.folder / "two" / "train"), STEADY)
    command = [*launcher(), "-m", "lm_retrieval", *arguments]
    started = time.monotonic()
    ran = subprocess.run(
        command, cwd=world.folder, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode != 0
    assert time.monotonic() - started < 60
    assert ran.stderr.count("holds a checkpoint already; add --resume") == 1
    assert "lm_retrieval/training" not in ran.stderr  # no traceback of ours
    assert ran.stdout == ""


def test_a_signal_stops_and_saves_on_all_processes_and_one_speaks(world: World) -> None:
    """The steps until then are those of one process, also where the next-token loss reads texts of one of them only."""
    endless = (*NEXT_TOKEN, "training.max_steps=100000", "training.batch_size=96")
    command = [*launcher(), "-m", "lm_retrieval", *tune("stopped", endless, *LSI)]
    process = subprocess.Popen(command, cwd=world.folder, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(read_metrics(world.folder / "stopped")) > 3, seconds=180)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("saved; go on with the same command and --resume") == 1
    assert said.count("saving; press Ctrl-C again") == 1
    assert is_checkpoint(world.folder / "stopped")
    state = torch.load(world.folder / "stopped" / "trainer.pt", weights_only=True)
    with inside(world.folder):
        alone(tune("stopped-alone", endless, *LSI), stop_after=4)
    expected = curve(world.folder / "stopped-alone")
    found = curve(world.folder / "stopped")
    assert state["position"]["step"] == max(step for step, *_ in found) >= 3
    for one, other in zip(found[:4], expected[:4], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_several_devices_are_a_process_each_without_torchrun(world: World) -> None:
    devices = ("--devices", "cpu,cpu")

    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lm_retrieval", *arguments]
        return subprocess.run(
            command, cwd=world.folder, env=environment(), capture_output=True, text=True, timeout=240, check=False
        )

    ran = run(train("devices", STEADY, *devices))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count(f"devices: {STEPS} steps, ") == 1
    assert_alike(world.folder / "devices", world.folder / "one" / "train")
    state = torch.load(world.folder / "devices" / "trainer.pt", weights_only=True)
    assert state["world_size"] == 2
    again = run(train("devices", STEADY, *devices))
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.splitlines() == [
        "Error: devices: holds a checkpoint already; add --resume to go on, or choose another --output"
    ]
    absent = run(tune("absent", TUNE, *LSI, "--devices", "cpu,cuda:7"))
    assert (absent.returncode, absent.stdout) == (1, "")
    assert absent.stderr == "Error: device 'cuda:7' is not available here; use --device cpu\n"


def test_ctrl_c_stops_and_saves_on_all_devices(world: World) -> None:
    endless = (*NEXT_TOKEN, "training.max_steps=100000")
    command = [sys.executable, "-m", "lm_retrieval", *tune("all-stopped", endless, *LSI, "--devices", "cpu,cpu")]
    process = subprocess.Popen(command, cwd=world.folder, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(read_metrics(world.folder / "all-stopped")) > 3, seconds=180)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.count("saved; go on with the same command and --resume") == 1
    assert "death signal" not in said
    assert is_checkpoint(world.folder / "all-stopped")


def test_a_process_that_is_killed_is_said(world: World) -> None:
    endless = (*STEADY, "training.max_steps=100000", "training.save_interval_seconds=0.1")
    command = [sys.executable, "-m", "lm_retrieval", *train("killed", endless, "--devices", "cpu,cpu")]
    process = subprocess.Popen(command, cwd=world.folder, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: is_checkpoint(world.folder / "killed"), seconds=180)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    numbers = [dict(line.split("=", 1) for line in environment_of(child) if "=" in line)["RANK"] for child in children]
    os.kill(int(children[numbers.index("0")]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines() == [
        "Error: process 0 was ended by signal 9 (out of memory?); what was saved is kept: add --resume to go on"
    ]


def environment_of(process: str) -> list[str]:
    return Path(f"/proc/{process}/environ").read_text().split("\0")


def test_rows_are_shared_out_among_as_many_gpus_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    started: list[list[str]] = []

    def launch(arguments: list[str], *, processes: int) -> int:
        assert arguments[-1].count("cuda") == processes
        started.append(arguments)
        return 5

    monkeypatch.setattr(launch_module, "_launch", launch)

    def ended(devices: str, rows: int, parts: int = 1) -> int | None:
        settings = RunConfig(training=TrainingConfig(batch_size=rows, accumulation_steps=parts, max_steps=1))
        with click.Context(click.Command("tune"), obj=["tune", "notes"]):
            try:
                launch_module.train_on_all(devices, lambda: settings)
            except SystemExit as end:
                return end.code
        return None

    assert ended("auto", 96) == 5
    assert ended("auto", 64) == 5
    assert ended("auto", 96, 32) == 5
    assert ended("auto", 7) is None
    assert ended("cuda:1", 96) is None
    assert [arguments[-1] for arguments in started] == ["cuda:0,cuda:1,cuda:2", "cuda:0,cuda:1", "cuda:0,cuda:1,cuda:2"]
    assert started[0][:-1] == ["tune", "notes", "--devices"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ended("auto", 96) is None


def test_a_second_machine_needs_no_file_of_the_first(world: World, tmp_path: Path) -> None:
    """Two launches with folders of their own: the second has neither configuration nor text, and writes nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = [
            "--nnodes=2",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={free.getsockname()[1]}",
        ]
    folders = [world.folder, tmp_path / "elsewhere"]
    for folder in (folders[1], tmp_path / "tmp"):
        folder.mkdir()
    processes = [
        subprocess.Popen(
            [*launcher(*place, f"--node-rank={number}"), "-m", "lm_retrieval", *train("machines", STEADY)],
            cwd=folder,
            env={**environment(), "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert_alike(world.folder / "machines", world.folder / "one" / "train")
    assert list(folders[1].iterdir()) == []
    assert [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("lmr")] == []
    assert [bool(out) for out, _ in said] == [True, False]


def test_the_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMR_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert thread_count() == max(1, available_cores() // 2)
    monkeypatch.setenv("LMR_THREADS", "3")
    assert thread_count() == 3


@pytest.mark.parametrize("command", ["train", "tune"])
def test_the_help_shows_how(lmr: Callable[..., Said], command: str) -> None:
    assert f"torchrun --standalone --nproc-per-node=2 -m lm_retrieval {command} " in lmr(command, "--help").stdout


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
