"""`lmr serve` as a process: what it serves, says and refuses, and how it ends; lm-evaluation-harness against it."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import httpx
import pytest
from conftest import ROOT, Said, rows_of, write_jsonl
from serving import eventually, serving, settings_of

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index
from lm_retrieval.scoring import score_tokens


class Process:
    """A running `lmr serve`; `errors` grows by what it says on stderr."""

    def __init__(self, *arguments: str | Path, cwd: Path, **environment: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "lm_retrieval", "serve", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "LMR_THREADS": "1", "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        match = re.match(r"(http://\S+)", line)
        assert match, (line, self.errors)
        self.client = httpx.Client(base_url=match[1], timeout=30, trust_env=False)

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.errors += line

    def end(self) -> int:
        """Asks it to stop; returns its exit status."""
        self.client.close()
        self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(30)
        self._reader.join()
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.popen.stdout.close()
        self.popen.stderr.close()
        return code


@contextmanager
def process(*arguments: str | Path, cwd: Path, **environment: str) -> Iterator[Process]:
    started = Process(*arguments, cwd=cwd, **environment)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            started.end()


def test_without_arguments_the_shipped_models_and_the_newest_index(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", rows_of(10))
    encoder = Encoder.load(make_checkpoint("lstm"))
    build_index(open_corpus(tmp_path / "corpus.jsonl"), encoder=encoder, output=tmp_path / "indexes" / "mine")
    with process("--port", "0", cwd=tmp_path) as started:
        eventually(lambda: started.client.get("/health").status_code == 200, seconds=60)
        health = started.client.get("/health").json()
        assert [(model["name"], model["kind"]) for model in health["models"]] == [
            ("rnn", "lstm"),
            ("transformer", "transformer"),
        ]
        (served,) = health["indexes"]
        assert (served["name"], served["status"], served["documents"]) == ("mine", "ready", 10)
        answer = started.client.post("/generate", json={"prompt": "The river", "max_tokens": 5}).json()
        assert set(answer) == {"rnn", "transformer"}
        assert started.client.get("/search", params={"q": "river"}).json()["hits"]
        assert "warning" not in started.errors
        run_the_readmes_examples(str(started.client.base_url))


def run_the_readmes_examples(address: str) -> None:
    """Each `curl` of the README against a server, as a shell runs it."""
    if which("curl") is None:
        return
    section = (ROOT / "README.md").read_text().split("## Serving", 1)[1]
    examples = section.split("```sh\n", 1)[1].split("```", 1)[0].replace("\\\n", " ").strip().splitlines()
    assert len(examples) >= 10
    for example in examples:
        assert example.startswith("curl -s ")
        command = example.replace("curl -s", "curl -s --fail --noproxy '*'").replace("localhost:8000", address)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (example, done.stderr)
        assert done.stdout


def test_a_server_that_is_told_to_stop_finishes_what_it_does(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with process("--model", f"custom={make_checkpoint('lstm')}", "--port", "0", cwd=tmp_path) as started:
        eventually(lambda: started.client.get("/health").status_code == 200, seconds=60)
        answers: list[httpx.Response] = []
        address = str(started.client.base_url)
        body = {"prompts": ["the"] * 60, "max_tokens": 400, "seed": 1, "top_p": 0.99}

        def ask() -> None:
            answers.append(httpx.post(f"{address}/generate/batch", json=body, timeout=60, trust_env=False))

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: 'lmr_unfinished_requests{worker="custom"} 1.0' in started.client.get("/metrics").text)
        assert not answers
        started.client.close()
        started.popen.send_signal(signal.SIGTERM)
        assert started.popen.wait(60) in (0, -signal.SIGTERM)
        asking.join()
        assert answers[0].status_code == 200
        assert len(answers[0].json()["results"]) == 60
        started.end()
        assert "Traceback" not in started.errors


def test_the_environment_is_heard(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    environment = {"PORT": "0", "LMR_API_KEY": "secret", "ALLOWED_ORIGIN": "https://a.example, https://b.example/"}
    arguments = ("--model", make_checkpoint("lstm"), "--host", "0.0.0.0")
    with process(*arguments, cwd=tmp_path, **environment) as started:
        port = started.client.base_url.port
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        assert client.get("/v1/models").status_code == 401
        answer = client.get("/health", headers={"Origin": "https://b.example"})
        assert answer.headers["access-control-allow-origin"] == "https://b.example"
        assert answer.json()["models"][0]["name"] == "tiny-lstm"
        client.close()
        assert started.end() in (0, -signal.SIGTERM)
        assert "needs no key" not in started.errors


def test_serving_beyond_this_machine_without_a_key_prints_a_warning(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with process("--model", make_checkpoint("lstm"), "--host", "0.0.0.0", "--port", "0", cwd=tmp_path) as started:
        eventually(lambda: "0.0.0.0 can be reached from other machines and needs no key" in started.errors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere: no such checkpoint folder"),
        (["--index", "nowhere"], "nowhere: no such index"),
        (["--model", "batch=lstm-base"], "'batch' cannot be the name of a model"),
        (["--model", "a=lstm-base", "--model", "a=lstm-base"], "two models are called 'a'"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(lmr: Callable[..., Said], arguments: list[str], message: str) -> None:
    said = lmr("serve", *arguments)
    assert said.code == 1
    assert said.stderr.startswith("Error: ")
    assert message in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_port_that_is_taken_or_none(lmr: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = lmr("serve", "--port", str(taken.getsockname()[1]))
    assert (said.code, "choose another --host or --port" in said.stderr) == (1, True)
    monkeypatch.setenv("PORT", "http")
    assert "PORT=http" in lmr("serve").stderr


def test_help_needs_neither_torch_nor_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; from lm_retrieval.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.endswith("[]\n")


def test_without_the_extra_the_message_says_how_to_install_it(
    lmr: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = lmr("serve")
    assert (said.code, "lm_retrieval[serve]" in said.stderr) == (1, True)


def test_several_workers_behind_one_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = (ROOT / "README.md").read_text().split("## Running it for others", 1)[1]
    (command,) = re.findall(r"(?<=\bLMR_THREADS=1 )uvicorn .*\\\n.*", section)
    arguments = shlex.split(command.replace("\\\n", " ").replace("--workers 4", f"--workers 2 --port {port}"))[1:]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *arguments],
            cwd=tmp_path,
            env={**os.environ, "LMR_THREADS": "1", "OMP_NUM_THREADS": "1", "LMR_API_KEY": "secret"},
            stderr=log,
        )
    said = (tmp_path / "log").read_text
    headers = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, headers=headers) as client:
        try:
            eventually(lambda: said().count("Application startup complete") == 2 or started.poll(), seconds=60)
            assert len(set(re.findall(r"Started server process \[(\d+)\]", said()))) == 2
            eventually(lambda: client.get("/health").status_code == 200, seconds=60)
            texts = client.post("/generate/rnn", json={"prompt": "The river", "max_tokens": 3})
            assert texts.json()["generated_text"]
            assert httpx.get(client.base_url.join("/metrics"), trust_env=False).status_code == 401
            if find_spec("uvloop") is not None:  # without it every answer waits 40 ms for an acknowledgement
                before = time.perf_counter()
                assert all(client.get("/").status_code == 200 for _ in range(20))
                assert time.perf_counter() - before < 20 * 0.03
        finally:
            started.send_signal(signal.SIGTERM)
            assert started.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm_eval")
def test_lm_evaluation_harness_scores_a_model_through_it(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        {"question": "the river carries", "choices": ["cold water", "old bridges"], "answer": 0},
        {"question": "a sparrow repairs", "choices": ["small numbers", "glass", "new laws"], "answer": 1},
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)  # type: ignore[arg-type]
    (tmp_path / "tiny_choice.yaml").write_text(
        "task: tiny_choice\n"
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\n'
        "metric_list:\n  - metric: acc\n"
    )
    with serving(settings_of({"rnn": make_checkpoint("lstm", seed=6)})) as started:
        arguments = f"model=rnn,base_url={started.url}/v1/completions,tokenizer_backend=remote,num_concurrent=2"
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
        options = ["--tasks", "tiny_choice", "--include_path", str(tmp_path), "--batch_size", "2"]
        options += ["--log_samples", "--output_path", str(tmp_path / "out")]
        offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(
            [*command, *options],
            env={**os.environ, **offline, "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        loaded = started.served.models["rnn"].language_model
    (log,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, log.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    for row, sample in zip(rows, samples, strict=True):
        for choice, (found, _) in zip(row["choices"], sample["filtered_resps"], strict=True):  # type: ignore[call-overload]
            context = loaded.tokenizer.encode(str(row["question"]))
            whole = loaded.tokenizer.encode(f"{row['question']} {choice}")
            scores = score_tokens(loaded.model, [[loaded.tokenizer.bos_id, *whole]])[0]
            expected = sum(score.log_probability for score in scores[len(context) :])
            assert float(found) == pytest.approx(expected, rel=1e-4)
