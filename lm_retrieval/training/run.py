"""`train`: from a corpus and a configuration to a checkpoint folder."""

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lm_retrieval.artifacts import folder_lock, sha256_bytes, write_json
from lm_retrieval.checkpoint import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    Checkpoint,
    check_output,
    read_config,
    write_checkpoint_manifest,
)
from lm_retrieval.config import RunConfig
from lm_retrieval.corpus import Corpus
from lm_retrieval.errors import ConfigError
from lm_retrieval.generation import PRESETS, generate
from lm_retrieval.models import LanguageModel, build_model
from lm_retrieval.runtime import seed_everything
from lm_retrieval.storage import Location, resolved
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.batches import SegmentBatches, TokenStream, enough_held_out, write_split, write_stream
from lm_retrieval.training.card import write_card
from lm_retrieval.training.curves import draw_curves
from lm_retrieval.training.objectives import NextTokenObjective
from lm_retrieval.training.processes import (
    check_rows,
    in_turn,
    local_device,
    own_random_numbers,
    process_group,
    rank,
    shared,
    world_size,
)
from lm_retrieval.training.sharing import shared_streams
from lm_retrieval.training.trainer import Position, Trainer, TrainingResult

logger = logging.getLogger(__name__)

_STREAMS_NAME = "tokens"
# what may differ between a run and its resumption
_FREE_KEYS = frozenset(
    [
        "max_steps",
        "max_tokens",
        "max_epochs",
        "max_time_seconds",
        "patience_evaluations",
        "save_interval_seconds",
        "compile",
        "log_interval_steps",
        "sample_prompt",
        "sample_tokens",
        "learning_rate",
    ]
)


def train(
    corpus: Corpus,
    *,
    config: RunConfig,
    output: Path,
    validation: Corpus | None = None,
    tokenizer: Tokenizer | None = None,
    start: Checkpoint | None = None,
    resume: bool = False,
    device: str = "auto",
    should_stop: Callable[[], bool] = lambda: False,
    after_save: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Trains a language model, and its tokenizer where none is given.

    Under torchrun process 0 alone reads the corpus and writes; each process must call this alike.

    Args:
        corpus: text to learn from.
        config: model, tokenizer and training sections.
        output: checkpoint folder; it must not hold a checkpoint yet unless `resume`.
        validation: held-out text; without it a share of the documents (or the end of a single one) is held out.
        tokenizer: a trained one to use.
        start: a checkpoint to go on from with new text; its model and tokenizer are used.
        resume: continue the run in `output` exactly where it was saved.
        device: `auto`, `cpu`, `cuda`, or one for each process of this machine, separated by commas.
        should_stop: asked after every step; True saves and ends the run.
        after_save: called whenever `output` is a complete checkpoint, to send it somewhere.

    Raises:
        CheckpointError: `output` holds a checkpoint already, or nothing to resume.
        ConfigError, CorpusError, TrainingError, MismatchError, StorageError: see their messages.
    """
    with process_group(device), ExitStack() as held:
        if start is not None:
            config = config.model_copy(update={"model": start.config.model})
            tokenizer = start.tokenizer

        def begin() -> Tokenizer:
            held.enter_context(folder_lock(output))
            check_output(output, resume=resume)
            check_rows(config.training)
            seed_everything(config.training.seed)
            if not resume:
                return tokenizer or _new_tokenizer(corpus, config, output)
            check_resumable(read_config(output), config, output)
            return Tokenizer.load(output / TOKENIZER_NAME)

        tokenizer = shared(begin)
        training, held_out = _streams(corpus, validation, tokenizer, config, output)
        seed_everything(config.training.seed)
        model = start.model if start and not resume else build_model(config.model, vocab_size=tokenizer.vocab_size)
        model.to(local_device(device))
        own_random_numbers(config.training.seed)
        result = _run(
            model, tokenizer, config, output, corpus.path, training, held_out, resume, should_stop, after_save
        )
        if result.reason != "interrupted" and rank() == 0:
            shutil.rmtree(output / _STREAMS_NAME, ignore_errors=True)
    return result


def _run(
    model: LanguageModel,
    tokenizer: Tokenizer,
    config: RunConfig,
    output: Path,
    corpus_path: Location,
    training: TokenStream,
    held_out: TokenStream,
    resume: bool,
    should_stop: Callable[[], bool],
    after_save: Callable[[], None],
) -> TrainingResult:
    settings = config.training
    length = min(settings.sequence_length_tokens, model.context_length or settings.sequence_length_tokens)

    def prepare() -> tuple[SegmentBatches, NextTokenObjective]:
        batches = SegmentBatches(
            training,
            batch_size=settings.batch_size,
            sequence_length=length,
            seed=settings.seed,
            multiple_of=settings.accumulation_steps * world_size(),
        )
        objective = NextTokenObjective(
            model,
            validation=held_out,
            sequence_length=length,
            max_tokens=settings.eval_max_tokens,
            carry_state=settings.carry_state,
        )
        return batches, objective

    batches, objective = in_turn(prepare)
    if batches.batch_size < settings.batch_size:
        logger.warning("little text: steps have %d rows instead of %d", batches.batch_size, settings.batch_size)
    logger.info(
        "%s: %s parameters, vocabulary %s, %s training tokens, %s held out",
        config.model.type,
        f"{sum(model.parameter_counts().values()):,}",
        f"{tokenizer.vocab_size:,}",
        f"{len(training.token_ids):,}",
        f"{len(held_out.token_ids):,}",
    )

    def complete(position: Position) -> None:
        # also when resuming: budgets and encoder settings may have changed
        write_json(output / CONFIG_NAME, config.model_dump(mode="json"))
        tokenizer.save(output / TOKENIZER_NAME)
        summary: dict[str, object] = {
            "steps": position.step,
            "training_tokens": position.tokens,
            "training_seconds": round(position.elapsed_seconds, 1),
            "best_step": position.best_step,
            "best_validation_loss": position.best_loss if position.best_loss < float("inf") else None,
            "training_text_bytes": training.text_bytes,
            "training_data_sha256": training.fingerprint,
            "corpus_path": str(resolved(corpus_path)),
        }
        draw_curves(output)
        write_card(output, config, model, {key: value for key, value in summary.items() if key != "corpus_path"})
        write_checkpoint_manifest(output, model=model, tokenizer=tokenizer, summary=summary)
        after_save()

    trainer = in_turn(
        lambda: Trainer(
            objective,
            batches=batches,
            config=settings,
            folder=output,
            data_fingerprint=sha256_bytes(training.fingerprint.encode(), held_out.fingerprint.encode()),
            on_save=complete,
            sample=lambda: _sample(model, tokenizer, config),
            should_stop=should_stop,
        )
    )
    return trainer.run(resume=resume)


def _new_tokenizer(corpus: Corpus, config: RunConfig, output: Path) -> Tokenizer:
    wanted = config.tokenizer.vocab_size
    tokenizer = Tokenizer.train((document.content for document in corpus.documents()), config.tokenizer)
    if tokenizer.vocab_size < wanted and config.tokenizer.type == "bpe":
        logger.warning("the text supports a vocabulary of %d, not %d", tokenizer.vocab_size, wanted)
    for note in corpus.counts.warnings():
        logger.warning("%s: %s", corpus.path, note)
    tokenizer.save(output / TOKENIZER_NAME)
    return tokenizer


def _streams(
    corpus: Corpus, validation: Corpus | None, tokenizer: Tokenizer, config: RunConfig, output: Path
) -> tuple[TokenStream, TokenStream]:
    folder, fraction = output / _STREAMS_NAME, config.training.validation_fraction

    def write() -> tuple[TokenStream, TokenStream]:
        if validation is None:
            return write_split(corpus.documents(), tokenizer=tokenizer, folder=folder, validation_fraction=fraction)
        return (
            write_stream(corpus.documents(), tokenizer=tokenizer, path=folder / "train.bin"),
            write_stream(validation.documents(), tokenizer=tokenizer, path=folder / "valid.bin"),
        )

    training, held_out = shared_streams(write)
    if validation is None:
        return enough_held_out(training, held_out, validation_fraction=fraction)
    return training, held_out


def check_resumable(saved: RunConfig, now: RunConfig, output: Path) -> None:
    """Raises ConfigError where a resumed run would not be the same run."""

    def fixed(config: RunConfig) -> dict[str, object]:
        training = {k: v for k, v in config.training.model_dump().items() if k not in _FREE_KEYS}
        tuning = config.tuning.model_dump()
        return {
            "model": config.model.model_dump(),
            **{f"training.{key}": value for key, value in training.items()},
            **{f"tuning.{key}": value for key, value in tuning.items()},
        }

    before, after = fixed(saved), fixed(now)
    changed = [key for key in before if before[key] != after.get(key)]
    if changed:
        raise ConfigError(
            f"{output}: cannot resume with another {changed[0]} ({before[changed[0]]} there, {after[changed[0]]} now); "
            "use the same configuration; budgets and the learning rate may change"
        )


def _sample(model: LanguageModel, tokenizer: Tokenizer, config: RunConfig) -> str:
    settings = config.training
    if not settings.sample_tokens:
        return ""
    training = model.training
    model.eval()
    sampling = replace(PRESETS["balanced"], max_new_tokens=settings.sample_tokens)
    text = generate(model, tokenizer=tokenizer, prompts=[settings.sample_prompt], config=sampling)[0].text
    model.train(training)
    return settings.sample_prompt + text
