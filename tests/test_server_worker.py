"""The worker: what shares a batch, what is turned away, and what happens to work that is given up."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from serving import eventually

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.generation import Continuation, GenerationConfig, generate
from lm_retrieval.server.metrics import Metrics
from lm_retrieval.server.settings import Batching
from lm_retrieval.server.worker import ClosedError, Operation, OverloadedError, Worker

GREEDY = GenerationConfig(max_new_tokens=8, do_sample=False)


@contextmanager
def working(*, max_waiting: int = 100, **batching: float) -> Iterator[Worker]:
    worker = Worker(
        "w",
        batching=Batching.model_validate({"window_seconds": 0.05, **batching}),
        max_waiting=max_waiting,
        metrics=Metrics(),
    )
    worker.start()
    yield worker
    worker.close(seconds=10)


class Recorder:
    """Doubles numbers and remembers the batches; waits at `gate` before each."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch: list[int]) -> Sequence[int]:
        self.batches.append(list(batch))
        assert self.gate.wait(10)
        if -1 in batch:
            raise ValueError("bad item")
        return [2 * number for number in batch]

    def operation(self, key: object = None) -> Operation[int, int]:
        return Operation("double", self, key)  # type: ignore[arg-type]


def test_requests_that_arrive_together_share_a_batch_and_get_their_own_results() -> None:
    recorder = Recorder()
    with working() as worker:
        futures = [worker.submit(recorder.operation(), [n, n + 10], tokens=[5, 5]) for n in range(4)]
        assert [future.result(5) for future in futures] == [[2 * n, 2 * n + 20] for n in range(4)]
    assert recorder.batches == [[0, 10, 1, 11, 2, 12, 3, 13]]


def test_the_token_budget_splits_batches_and_does_not_wait_for_the_window() -> None:
    recorder = Recorder()
    with working(max_batch_tokens=20, window_seconds=60) as worker:
        found = worker.submit(recorder.operation(), [1, 2, 3, 4, 5, 6, 7], tokens=[8, 8, 8, 30, 8, 8, 2])
        eventually(lambda: recorder.batches == [[1, 2], [3], [4]])
        assert not found.done()  # the rest does not fill a batch
        worker.close(seconds=5)
        assert found.result(5) == [2, 4, 6, 8, 10, 12, 14]
    assert recorder.batches[3:] == [[5, 6, 7]]


def test_operations_with_other_keys_do_not_share() -> None:
    recorder = Recorder()
    with working() as worker:
        first = worker.submit(recorder.operation("a"), [1], tokens=[1])
        second = worker.submit(recorder.operation("b"), [2], tokens=[1])
        third = worker.submit(recorder.operation("a"), [3], tokens=[1])
        assert [f.result(5) for f in (first, second, third)] == [[2], [4], [6]]
    assert recorder.batches == [[1, 3], [2]]


def test_one_requests_error_is_not_anothers() -> None:
    recorder = Recorder()
    with working() as worker:
        good = worker.submit(recorder.operation(), [1, 2], tokens=[1, 1])
        bad = worker.submit(recorder.operation(), [-1], tokens=[1])
        assert good.result(5) == [2, 4]
        with pytest.raises(ValueError, match="bad item"):
            bad.result(5)
        assert worker.submit(recorder.operation(), [4], tokens=[1]).result(5) == [8]


def test_a_full_queue_turns_requests_away_and_says_when_to_come_again() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    with working(max_waiting=2, window_seconds=0) as worker:
        accepted = [worker.submit(recorder.operation(), [n], tokens=[1]) for n in (1, 2)]
        with pytest.raises(OverloadedError) as refused:
            worker.submit(recorder.operation(), [3], tokens=[1])
        assert 1 <= refused.value.retry_after_seconds <= 60
        recorder.gate.set()
        assert [future.result(5) for future in accepted] == [[2], [4]]
        assert worker.submit(recorder.operation(), [3], tokens=[1]).result(5) == [6]


def test_what_is_cancelled_before_it_begins_is_never_run_and_makes_room() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    with working(max_waiting=2, window_seconds=0) as worker:
        running = worker.submit(recorder.operation(), [1], tokens=[1])
        eventually(lambda: recorder.batches == [[1]])
        waiting = worker.submit(recorder.operation(), [2], tokens=[1])
        assert waiting.cancel()
        third = worker.submit(recorder.operation(), [3], tokens=[1])
        recorder.gate.set()
        assert (running.result(5), third.result(5)) == ([2], [6])
    assert recorder.batches == [[1], [3]]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    recorder = Recorder()
    with working(window_seconds=30) as worker:
        accepted = worker.submit(recorder.operation(), [1], tokens=[1])
        worker.close(seconds=5)
        assert accepted.result(0) == [2]
        with pytest.raises(ClosedError):
            worker.submit(recorder.operation(), [2], tokens=[1])


# ---------------------------------------------------------------- writing


@pytest.fixture(scope="module")
def lstm(make_checkpoint: Callable[..., object]) -> Checkpoint:
    return Checkpoint.load(make_checkpoint("lstm", seed=2))  # type: ignore[arg-type]


def continuation(lstm: Checkpoint, prompt: str, config: GenerationConfig = GREEDY) -> Continuation:
    return Continuation(lstm.tokenizer, prompt, config)


def test_texts_of_several_requests_are_written_side_by_side_each_under_its_settings(lstm: Checkpoint) -> None:
    configs = [GREEDY, GenerationConfig(max_new_tokens=5, seed=3), GenerationConfig(max_new_tokens=12, top_k=3)]
    prompts = ["the river", "a sparrow carries", "her"]
    shapes: list[int] = []
    hook = lstm.model.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape[0]))
    with working() as worker:
        futures = [
            worker.write(lstm.model, [continuation(lstm, prompt, config)])
            for prompt, config in zip(prompts, configs, strict=True)
        ]
        written = [future.result(10)[0] for future in futures]
    hook.remove()
    assert max(shapes) == 3
    for found, prompt, config in zip(written, prompts, configs, strict=True):
        (alone,) = generate(lstm.model, tokenizer=lstm.tokenizer, prompts=[prompt], config=config)
        assert found.token_ids == alone.token_ids


def test_prompts_of_very_different_lengths_are_written_in_groups_of_their_own(lstm: Checkpoint) -> None:
    long = "the river carries cold water " * 30
    with working() as worker:
        rows = [continuation(lstm, text) for text in ("the", long, "a")]
        found = worker.write(lstm.model, rows).result(10)
    expected = generate(lstm.model, tokenizer=lstm.tokenizer, prompts=["the", long, "a"], config=GREEDY)
    assert [result.token_ids for result in found] == [result.token_ids for result in expected]


def test_cancelling_stops_a_text_before_its_next_token(lstm: Checkpoint) -> None:
    row = continuation(lstm, "the", GenerationConfig(max_new_tokens=100_000, seed=1))
    seen = threading.Event()
    with working(window_seconds=0) as worker:
        future = worker.write(lstm.model, [row], listener=lambda _place, _row: seen.set())
        assert seen.wait(5)
        assert future.cancel()
        eventually(lambda: not worker._groups)
        count = len(row.token_ids)
        time.sleep(0.05)
        assert len(row.token_ids) == count
    assert row.finish_reason == "cancelled"


def test_batches_run_between_the_tokens_of_a_long_text(lstm: Checkpoint) -> None:
    recorder = Recorder()
    with working(window_seconds=0) as worker:
        config = GenerationConfig(max_new_tokens=100_000, seed=1)
        long = worker.write(lstm.model, [continuation(lstm, "the", config)])
        assert worker.submit(recorder.operation(), [1], tokens=[1]).result(5) == [2]
        assert worker.write(lstm.model, [continuation(lstm, "a")]).result(5)[0].text is not None
        assert not long.done()
        long.cancel()


def test_a_model_that_fails_ends_its_requests_and_not_the_worker(
    lstm: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working(window_seconds=0) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(lstm.model, "logits", lambda hidden: torch.zeros(1) / "x")  # type: ignore[operator]
            with pytest.raises(TypeError):
                worker.write(lstm.model, [continuation(lstm, "the")]).result(5)
        assert worker.write(lstm.model, [continuation(lstm, "the")]).result(5)
