"""The one training loop: budgets, accumulation, mixed precision, evaluation, checkpoints, exact resume, DDP.

A run's folder always holds a complete checkpoint: `model.safetensors` is the best on held-out data,
`last.safetensors` and `trainer.pt` are where training stands.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from lm_retrieval.artifacts import atomic_file, storage_errors
from lm_retrieval.checkpoint import LAST_WEIGHTS_NAME, WEIGHTS_NAME, save_weights
from lm_retrieval.config import TrainingConfig
from lm_retrieval.errors import CheckpointError, MismatchError, TrainingError
from lm_retrieval.models import State
from lm_retrieval.progress import Advance, progress
from lm_retrieval.runtime import resolve_dtype
from lm_retrieval.training.objectives import Evaluation, Objective
from lm_retrieval.training.optimizer import build_optimizer, learning_rate
from lm_retrieval.training.processes import in_turn, rank, shared, told, told_numbers, wait_for_all, world_size

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
TRAINER_STATE_NAME = "trainer.pt"
StopReason = Literal["max_steps", "max_tokens", "max_epochs", "max_time", "patience", "interrupted"]


class Batch(Protocol):
    """What an objective takes: a tensor, or several."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Any: ...


class Batches(Protocol):
    """Training data addressed by position, so that resuming can go on from any step."""

    steps_per_epoch: int
    tokens_per_step: int

    def batch(self, epoch: int, step: int, *, parts: int = 1) -> Sequence[Batch]: ...


@dataclass
class Position:
    """How far a run has come; saved and restored as a whole."""

    step: int = 0
    tokens: int = 0
    elapsed_seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_without_gain: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    reason: StopReason
    position: Position
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Runs an objective over batches until a budget is spent."""

    def __init__(
        self,
        objective: Objective,
        *,
        batches: Batches,
        config: TrainingConfig,
        folder: Path,
        data_fingerprint: str,
        on_save: Callable[[Position], None],
        sample: Callable[[], str] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepares a run.

        Args:
            objective: model and loss, on their device.
            batches: training data; rows of a batch divide evenly among processes and micro-batches.
            config: budgets and hyperparameters.
            folder: where checkpoints and metrics go.
            data_fingerprint: identifies the training data; a resumed run must see the same.
            on_save: called after weights were written, to complete the checkpoint (manifest, curves).
            sample: makes a text to look at, at each evaluation.
            should_stop: asked after every step; True saves and ends the run.
        """
        self.objective, self.batches, self.config, self.folder = objective, batches, config, folder
        self.data_fingerprint, self.on_save, self.sample, self.should_stop = (
            data_fingerprint,
            on_save,
            sample,
            should_stop,
        )
        self.rank, self.world_size = rank(), world_size()
        self.device = objective.model.device
        self.dtype = resolve_dtype(config.precision, self.device)
        self.stored_dtype = torch.float16 if config.stored_precision == "float16" else torch.float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.optimizer = build_optimizer(objective, config, ratio=objective.learning_rate_ratio)
        self.position = Position()
        self.states: list[State | None] = [None] * config.accumulation_steps
        self.total_steps = _total_steps(config, batches)
        self._last_metrics: dict[str, float] = {}
        self._window: list[tuple[float, int, float]] = []

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, *, resume: bool = False) -> TrainingResult:
        """Trains until a budget is spent, patience runs out or `should_stop` says so.

        Raises:
            TrainingError: the loss is no longer a finite number; the last good checkpoint stays.
            CheckpointError: `resume` without a usable `trainer.pt`.
            MismatchError: `resume` with other training data.
        """
        if resume:
            self._restore()
        elif self.rank == 0:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / METRICS_NAME).unlink(missing_ok=True)
        wrapped = self._wrap()
        self.objective.train()
        started = time.monotonic() - self.position.elapsed_seconds
        last_save = time.monotonic()
        with progress("training", total=1.0) as advance:
            advance(shown := self._progress())
            reason = self._spent()
            while reason is None:
                loss = self._step(wrapped)
                due = time.monotonic() - last_save > self.config.save_interval_seconds
                everyone = told_numbers([loss, time.monotonic() - started, float(due)])
                losses, seconds, dues = zip(*everyone, strict=True)
                self._window.append((time.monotonic(), self.position.tokens, sum(losses) / len(losses)))
                self.position.elapsed_seconds = max(seconds)
                if self.position.step % self.config.log_interval_steps == 0:
                    self._log_step(advance)
                if self.position.step % self.config.eval_interval_steps == 0:
                    self._evaluate()
                reason = self._spent()
                if reason is None and any(dues):
                    self._save()
                    last_save = time.monotonic()
                advance((now := self._progress()) - shown)
                shown = now
        if reason != "interrupted" and self.position.step % self.config.eval_interval_steps:
            self._evaluate()
        self._save()
        wait_for_all()  # nobody ends, and has torchrun end the others, before process 0 has written
        return TrainingResult(reason, self.position, self._last_metrics)

    def _wrap(self) -> torch.nn.Module:
        module: torch.nn.Module = self.objective
        if self.config.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        if self.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            module = torch.nn.parallel.DistributedDataParallel(module, device_ids=ids)
        return module

    def _step(self, wrapped: torch.nn.Module) -> float:
        """Takes one step and returns its loss on this process."""
        config, position = self.config, self.position
        epoch, step_in_epoch = divmod(position.step, self.batches.steps_per_epoch)
        if step_in_epoch == 0:
            self.states = [None] * config.accumulation_steps
        parts = self.batches.batch(epoch, step_in_epoch, parts=config.accumulation_steps * self.world_size)
        # the parts of one micro-batch, one for each process, follow one another
        mine = parts[self.rank :: self.world_size]
        rate = learning_rate(position.step, progress=self._progress(), config=config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["learning_rate_ratio"]
        loss = sum(self._micro_step(wrapped, place, rows) for place, rows in enumerate(mine))
        self.scaler.unscale_(self.optimizer)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), config.max_gradient_norm, foreach=True)
        )
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self.scaler.is_enabled()):
            raise TrainingError(
                f"step {position.step + 1}: the loss is no longer a finite number (loss {loss}, gradient norm {norm}); "
                f"{self._way_back()} a lower training.learning_rate"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        position.step += 1
        position.tokens += self.batches.tokens_per_step
        self._current = {"learning_rate": rate, "gradient_norm": norm}
        return loss

    def _way_back(self) -> str:
        if (self.folder / TRAINER_STATE_NAME).is_file():
            return f"the checkpoint in {self.folder} is from before; go on from it with --resume and"
        return "nothing was saved yet; start again with"

    def _micro_step(self, wrapped: torch.nn.Module, place: int, rows: Batch) -> float:
        """Adds one micro-batch's gradients and returns its share of the step's loss."""
        last = place == self.config.accumulation_steps - 1
        quiet: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel) and not last:
            quiet = wrapped.no_sync()
        mixed = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with quiet:
            with mixed:
                loss, self.states[place] = wrapped(rows.to(self.device, non_blocking=True), self.states[place])
                loss = loss / self.config.accumulation_steps
            self.scaler.scale(loss).backward()
        return float(loss.detach())

    # --- budgets -------------------------------------------------------------------------------------------------

    def _progress(self) -> float:
        """Share of the tightest budget that is spent, 0..1."""
        by_steps = self.position.step / self.total_steps if self.total_steps else 0.0
        limit = self.config.max_time_seconds
        return min(1.0, max(by_steps, self.position.elapsed_seconds / limit if limit else 0.0))

    def _spent(self) -> StopReason | None:
        config, position = self.config, self.position
        rules: tuple[tuple[StopReason, bool], ...] = (
            ("max_steps", config.max_steps is not None and position.step >= config.max_steps),
            ("max_tokens", config.max_tokens is not None and position.tokens >= config.max_tokens),
            (
                "max_epochs",
                config.max_epochs is not None and position.step >= config.max_epochs * self.batches.steps_per_epoch,
            ),
            ("max_time", config.max_time_seconds is not None and position.elapsed_seconds >= config.max_time_seconds),
            (
                "patience",
                config.patience_evaluations is not None
                and position.evaluations_without_gain >= config.patience_evaluations,
            ),
            ("interrupted", any(asked for (asked,) in told_numbers([float(self.should_stop())]))),
        )
        return next((reason for reason, holds in rules if holds), None)

    # --- evaluation and logs ---------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        position = self.position
        evaluation: Evaluation = shared(self.objective.evaluate)
        loss = evaluation.loss
        better = loss < position.best_loss
        position.evaluations_without_gain = 0 if better else position.evaluations_without_gain + 1
        if better:
            position.best_loss, position.best_step = loss, position.step
        self._last_metrics = {"validation_loss": evaluation.loss, **evaluation.metrics}
        if self.rank != 0:
            return
        if better:
            self.objective.save_best(self.folder, dtype=self.stored_dtype)
        text = self.sample() if self.sample else None
        record = {"step": position.step, "tokens": position.tokens, **self._last_metrics}
        self._append(record | ({"sample": text} if text else {}))
        shown = ", ".join(
            f"{name.removeprefix('validation_')} {value:.4g}" for name, value in self._last_metrics.items()
        )
        logger.info("step %d, held out: %s%s", position.step, shown, "" if better else " (not better)")
        if text:
            logger.info("sample: %s", text.replace("\n", "⏎"))

    def _log_step(self, advance: Advance) -> None:
        (first_time, first_tokens, _), (last_time, last_tokens, _) = self._window[0], self._window[-1]
        rate = (last_tokens - first_tokens) / max(1e-9, last_time - first_time)
        recent = self._window[-self.config.log_interval_steps :]
        loss = sum(item[2] for item in recent) / len(recent)
        advance(0, note=f"step {self.position.step}  loss {loss:.3f}  {rate:,.0f} tokens/s")
        if self.rank == 0:
            self._append(
                {
                    "step": self.position.step,
                    "tokens": self.position.tokens,
                    "epoch": round(self.position.step / self.batches.steps_per_epoch, 3),
                    "loss": loss,
                    **self._current,
                    "tokens_per_second": round(rate, 1),
                    "elapsed_seconds": round(self.position.elapsed_seconds, 2),
                }
            )
        self._window = self._window[-1:]  # the next rate is measured from here

    def _append(self, record: dict[str, Any]) -> None:
        path = self.folder / METRICS_NAME
        with storage_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    # --- saving and resuming ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        ranks = told(
            {
                "states": [part and tuple(tensor.cpu() for tensor in part) for part in self.states],
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            }
        )
        if self.rank != 0:
            return
        if not (self.folder / WEIGHTS_NAME).is_file() or not math.isfinite(self.position.best_loss):
            self.objective.save_best(self.folder, dtype=self.stored_dtype)
        save_weights(self.objective.model, self.folder / LAST_WEIGHTS_NAME)
        state = {
            "position": vars(self.position),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": ranks,
            "data_fingerprint": self.data_fingerprint,
            "world_size": self.world_size,
            "tokens_per_step": self.batches.tokens_per_step,
            "window": self._window,
        }
        with atomic_file(self.folder / TRAINER_STATE_NAME, "wb") as stream:
            torch.save(state, stream)
        self.on_save(self.position)

    def _restore(self) -> None:
        # the other processes may be on machines that do not have the file
        state = shared(self._read_state)
        in_turn(lambda: self._load(state))
        self._restore_states([part["states"] for part in state["ranks"]])
        self._restore_random(state["ranks"])
        # the clock of the process that was saved means nothing here
        self._window = [(time.monotonic(), tokens, loss) for _, tokens, loss in state["window"]]
        if self.rank == 0:
            self._truncate_metrics()

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / TRAINER_STATE_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder}: nothing to resume ({TRAINER_STATE_NAME} is missing); run without --resume"
            )
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise anything
            raise self._damaged(error) from error
        if state["data_fingerprint"] != self.data_fingerprint:
            raise MismatchError(
                f"{self.folder}: this run began on other text; resume with the same corpus and tokenizer"
            )
        if state.get("tokens_per_step", self.batches.tokens_per_step) != self.batches.tokens_per_step:
            raise MismatchError(
                f"{self.folder}: there is so little data that {self.world_size} processes would share it out in other "
                f"steps than {state['world_size']} did; resume with --nproc-per-node={state['world_size']}"
            )
        return state

    def _load(self, state: dict[str, Any]) -> None:
        try:
            self.position = Position(**state["position"])
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CheckpointError:
        path = self.folder / TRAINER_STATE_NAME
        return CheckpointError(f"{path}: damaged or of another model ({error}); train again without --resume")

    def _restore_states(self, saved: list[list[State | None]]) -> None:
        """Shares out again the carried states of each micro-batch: its rows follow one another from rank to rank."""
        batch_dim = self.objective.model.state_batch_dim
        self.states = []
        for parts in zip(*saved, strict=True):
            known = [part for part in parts if part is not None]
            whole = [torch.cat(tensors, batch_dim) for tensors in zip(*known, strict=True)]
            mine = (tensor.chunk(self.world_size, batch_dim)[self.rank].contiguous() for tensor in whole)
            self.states.append(tuple(tensor.to(self.device) for tensor in mine) if known else None)

    def _restore_random(self, saved: list[dict[str, Any]]) -> None:
        """Each process goes on with its own random numbers; one that was not there before has begun new ones."""
        if len(saved) != self.world_size and self.rank == 0:
            logger.info(
                "saved by %d processes, going on with %d: the same steps, dropout apart", len(saved), self.world_size
            )
        if self.rank < len(saved):
            torch.set_rng_state(saved[self.rank]["random"])
            if saved[self.rank]["random_cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(saved[self.rank]["random_cuda"], self.device)

    def _truncate_metrics(self) -> None:
        """Takes away what was logged after the saved position."""
        path = self.folder / METRICS_NAME
        if not path.is_file():
            return
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= self.position.step]
        with atomic_file(path) as stream:
            stream.writelines(f"{line}\n" for line in kept)


def _total_steps(config: TrainingConfig, batches: Batches) -> int | None:
    limits = [
        config.max_steps,
        config.max_tokens and math.ceil(config.max_tokens / batches.tokens_per_step),
        config.max_epochs and config.max_epochs * batches.steps_per_epoch,
    ]
    return min((limit for limit in limits if limit), default=None)
