"""`tune`: contrastive training of an encoder, in the one trainer."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lm_retrieval.artifacts import folder_lock, sha256_bytes, write_json
from lm_retrieval.checkpoint import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    Checkpoint,
    build_pooling,
    check_output,
    read_config,
    write_checkpoint_manifest,
)
from lm_retrieval.config import EncoderConfig, RunConfig, TrainingConfig
from lm_retrieval.corpus import Corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import MismatchError
from lm_retrieval.models import LearnedPooling
from lm_retrieval.runtime import seed_everything
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.card import write_card
from lm_retrieval.training.contrastive import ContrastiveObjective
from lm_retrieval.training.curves import draw_curves
from lm_retrieval.training.pair_batches import PairBatches, TokenizedPairs
from lm_retrieval.training.processes import (
    check_rows,
    in_turn,
    local_device,
    own_random_numbers,
    process_group,
    shared,
    world_size,
)
from lm_retrieval.training.run import check_resumable
from lm_retrieval.training.trainer import Position, Trainer, TrainingResult
from lm_retrieval.tuning.material import Material, gather
from lm_retrieval.tuning.start import condition_states, taught_pooling, untaught_pooling
from lm_retrieval.tuning.teachers import AUTO

# learned pooling makes the averaging of layers and the whitening superfluous
_ENCODER = {"pooling": "learned", "layers": "last", "postprocess": "none"}
_FIT_PAIRS = 6_000
_EVAL_BATCH = 256


def tuning_config() -> RunConfig:
    """What `lmr tune` does without a configuration file: five minutes of contrastive training."""
    training = TrainingConfig(
        max_epochs=None,
        max_time_seconds=300.0,
        batch_size=256,
        learning_rate=1e-3,
        warmup_steps=20,
        weight_decay=0.0,
        eval_interval_steps=100,
        patience_evaluations=5,
        log_interval_steps=10,
        sample_tokens=0,
    )
    return RunConfig(training=training, encoder=EncoderConfig(pooling="learned"))


def tune(
    corpus: Corpus,
    *,
    start: Checkpoint,
    config: RunConfig,
    output: Path,
    labels: str | None = None,
    teacher: str = AUTO,
    teacher_cache: Path = Path("checkpoints") / ".teachers",
    resume: bool = False,
    device: str = "auto",
    should_stop: Callable[[], bool] = lambda: False,
    after_save: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Trains an encoder contrastively.

    Under torchrun process 0 alone reads the corpus, asks the teacher and writes; each process must call this alike.

    Args:
        corpus: unlabelled text, a BEIR folder, or a file or folder of (query, positive) pairs.
        start: language model or encoder to go on from; its model, tokenizer and pooling are used.
        config: training and tuning sections.
        output: checkpoint folder; it must not hold a checkpoint yet unless `resume`.
        labels: a split of a BEIR folder, or a file of pairs; `none` uses the text alone. By default the split `train`
            where there is one.
        teacher: `lsi` for the corpus's own statistics, the folder of a sentence-transformers model, or `none`; by
            default `lsi` where there are documents.
        teacher_cache: where the vectors of a sentence-transformers teacher are kept.
        resume: continue the run in `output` exactly where it was saved.
        device: `auto`, `cpu`, `cuda`, or one for each process of this machine, separated by commas.
        should_stop: asked after every step; True saves and ends the run.
        after_save: called whenever `output` is a complete checkpoint, to send it somewhere.

    Raises:
        CorpusError: too little text, or labels that cannot be used.
        CheckpointError: `output` holds a checkpoint already, nothing to resume, or the teacher is no model.
        ConfigError, MismatchError, TrainingError, StorageError: see their messages.
    """
    config = config.model_copy(
        update={
            "model": start.config.model,
            "tokenizer": start.config.tokenizer,
            "encoder": start.config.encoder.model_copy(
                update={"pooling": "learned", "layers": "last", "postprocess": "none"}
            ),
        }
    )
    with process_group(device), ExitStack() as held:

        def begin() -> Material:
            held.enter_context(folder_lock(output))
            check_output(output, resume=resume)
            check_rows(config.training)
            if resume:
                _check_run(output, start, config)
            seed_everything(config.training.seed)
            return gather(corpus, start, config, labels=labels, teacher=teacher, cache=teacher_cache)

        return _run(shared(begin), start, config, output, corpus, resume, device, should_stop, after_save)


def _check_run(output: Path, start: Checkpoint, config: RunConfig) -> None:
    if Tokenizer.load(output / TOKENIZER_NAME).fingerprint != start.tokenizer.fingerprint:
        raise MismatchError(f"{output}: was tuned with another tokenizer than {start.path} has; give the same --from")
    check_resumable(read_config(output), config, output)


def _run(
    material: Material,
    start: Checkpoint,
    config: RunConfig,
    output: Path,
    corpus: Corpus,
    resume: bool,
    device: str,
    should_stop: Callable[[], bool],
    after_save: Callable[[], None],
) -> TrainingResult:
    settings = config.training
    model = start.model.to(local_device(device))

    def first_pooling() -> LearnedPooling:
        # a resumed run reads its pooling back
        return build_pooling(model) if resume else _start_pooling(start, material, words_only=config.tuning.words_only)

    pooling = shared(first_pooling).to(model.device)
    own_random_numbers(settings.seed)
    batches = in_turn(
        lambda: PairBatches(
            material.training,
            batch_size=settings.batch_size,
            seed=settings.seed,
            token_dropout=config.tuning.token_dropout,
            multiple_of=settings.accumulation_steps * world_size(),
        )
    )
    current = Encoder(
        Checkpoint(model, start.tokenizer, config, {}, output, pooling), config=config.encoder.model_copy()
    )
    dev_score = material.dev_score
    objective = ContrastiveObjective(
        model,
        pooling,
        config=config.tuning,
        validation=_validation_batches(material.validation),
        dev_score=(lambda: dev_score(current)) if dev_score else None,
    )

    def complete(position: Position) -> None:
        write_json(output / CONFIG_NAME, config.model_dump(mode="json"))
        start.tokenizer.save(output / TOKENIZER_NAME)
        summary = {
            "steps": position.step,
            "training_tokens": position.tokens,
            "training_seconds": round(position.elapsed_seconds, 1),
            "best_step": position.best_step,
            "training_data_sha256": material.training.fingerprint,
            **material.facts,
        }
        draw_curves(output, label="contrastive loss (nats)")
        facts = {key: value for key, value in summary.items() if key != "corpus_path"}
        write_card(output, config, model, facts, what="An encoder")
        write_checkpoint_manifest(output, model=model, tokenizer=start.tokenizer, pooling=pooling, summary=summary)
        after_save()

    data = (material.training.fingerprint, material.validation.fingerprint)
    trainer = in_turn(
        lambda: Trainer(
            objective,
            batches=batches,
            config=settings,
            folder=output,
            data_fingerprint=sha256_bytes(*(part.encode() for part in data)),
            on_save=complete,
            should_stop=should_stop,
        )
    )
    return trainer.run(resume=resume)


def _start_pooling(start: Checkpoint, material: Material, *, words_only: bool) -> LearnedPooling:
    """Where the pooling starts: words alone without a projection, all else with one that is ready to learn."""
    pooling = _fitted_pooling(start, material)
    if words_only:
        # hidden states take no part in the training, so they must not take part in the encoder that comes out of it
        pooling.projection.data.zero_()
    elif not pooling.projection.any():
        condition_states(pooling, start.model, material.training.positives[:_FIT_PAIRS])
    return pooling


def _fitted_pooling(start: Checkpoint, material: Material) -> LearnedPooling:
    """The start's pooling, fitted to the teacher first where it has none or the teacher was made around it."""
    pairs, teacher = material.training, material.fit_to
    if teacher is None:
        return start.pooling or untaught_pooling(start, [*pairs.queries, *pairs.positives])
    texts = [*pairs.queries[:_FIT_PAIRS], *pairs.positives[:_FIT_PAIRS]]
    targets = np.concatenate((pairs.query_targets[:_FIT_PAIRS], pairs.document_targets[:_FIT_PAIRS]))
    words = teacher.encode(material.words).astype(np.float32)
    return taught_pooling(start, texts, targets.astype(np.float32), words=material.words, word_targets=words)


def _validation_batches(pairs: TokenizedPairs) -> list[Any]:
    batches = PairBatches(pairs, batch_size=min(_EVAL_BATCH, len(pairs)), seed=0)
    size = batches.batch_size
    return [batches.gather(np.arange(start, start + size)) for start in range(0, len(pairs) - size + 1, size)]
