"""Contrastive training: a query close to its document, far from the other documents of the batch.

InfoNCE with in-batch negatives (van den Oord et al., 2018, arXiv:1807.03748), in both directions, with a learned
temperature (Radford et al., 2021, arXiv:2103.00020). With a teacher, the similarities of all texts of the batch are
matched too: the student's distribution over the others of each text against the teacher's. Several processes share
out the pairs of a micro-batch, and each text is compared with those of all.

Shapes: B pairs, N negatives of a pair, T tokens, D hidden, E dimensions of a vector.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm_retrieval.checkpoint import POOLING_NAME, save_weights
from lm_retrieval.config import TuningConfig
from lm_retrieval.models import LanguageModel, LearnedPooling, State
from lm_retrieval.training.gathering import Gathering
from lm_retrieval.training.objectives import Evaluation, Objective
from lm_retrieval.training.pair_batches import PairBatch

_MAX_SCALE = 100.0
_HEAD = ("output.", "narrow.")  # parameters that only the next-token loss uses; a tied table is not among them
_PROJECTION_RATIO = 0.1
_LM_TOKENS = 1024  # tokens of a step that the next-token term looks at


class ContrastiveObjective(Objective):
    """InfoNCE, a teacher's similarities and the next token, each with its weight."""

    def __init__(
        self,
        model: LanguageModel,
        pooling: LearnedPooling,
        *,
        config: TuningConfig,
        validation: Sequence[PairBatch],
        dev_score: Callable[[], float] | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            model: encodes; also trained, unless `config.train_language_model` is off.
            pooling: makes one vector per text; trained.
            config: weights and temperatures.
            validation: held-out batches.
            dev_score: a ranking measure on a dev split, higher is better; decides which weights are best.
        """
        super().__init__()
        self.model, self.pooling, self.config = model, pooling, config
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature), device=model.device))
        self.validation, self.dev_score = validation, dev_score
        pooling.projection.requires_grad_(not config.words_only)
        learns = config.train_language_model and not config.words_only
        for name, parameter in model.named_parameters():
            # without the next-token term the head gets no gradient, and processes would wait for it for ever
            parameter.requires_grad_(learns and (config.next_token_weight > 0 or not name.startswith(_HEAD)))

    def forward(self, batch: PairBatch, state: State | None) -> tuple[Tensor, None]:
        """The weighted sum of the terms."""
        documents, hidden = self.vectors(batch.document_ids, batch.document_lengths)
        queries, _ = self.vectors(batch.query_ids, batch.query_lengths)
        everyone = Gathering(pairs=len(queries), documents=len(documents), device=queries.device)
        loss = self._ranking_loss(
            everyone.pairs(queries), everyone.documents(documents), _labels_of_all(batch, everyone), rows=everyone.rows
        )
        if self.config.next_token_weight and hidden is not None:
            loss = loss + self.config.next_token_weight * self._next_token(hidden, batch, everyone)
        return loss, None

    def vectors(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, E) unit vectors in float32, and the (B, T, D) hidden states they come from, unless only words count."""
        hidden = None if self.config.words_only else self.model(token_ids).hidden
        return functional.normalize(self.pooling(hidden, token_ids, lengths), dim=1), hidden

    def _ranking_loss(
        self, queries: Tensor, documents: Tensor, labels: PairBatch, *, rows: Tensor | None = None
    ) -> Tensor:
        """The mean over `rows` of the pairs, by default over all; of `labels` only numbers and targets are read."""
        config = self.config
        loss = queries.new_zeros(())
        with torch.autocast(queries.device.type, enabled=False):
            scale = self.log_scale.exp().clamp(max=_MAX_SCALE)
            if config.contrastive_weight:
                loss = loss + config.contrastive_weight * info_nce(
                    queries, documents, right_answers(labels.queries, labels.documents), scale=scale, rows=rows
                )
            if config.teacher_weight and labels.query_targets.any():
                loss = loss + config.teacher_weight * similarity_matching(
                    torch.cat((queries, documents[: len(queries)])),
                    torch.cat((labels.query_targets, labels.document_targets)),
                    scale=scale,
                    teacher_scale=1 / config.teacher_temperature,
                    rows=None if rows is None else torch.cat((rows, rows + len(queries))),
                )
        return loss

    def _next_token(self, hidden: Tensor, batch: PairBatch, everyone: Gathering) -> Tensor:
        """Cross-entropy of the next token in some of the documents: the first of the micro-batch.

        A process gives its share of the sum, times the number of processes: the mean of theirs is that of all tokens.
        """
        ids, own = batch.document_ids, batch.document_lengths
        lengths = everyone.documents(own)
        rows = max(1, _LM_TOKENS // max(1, int(lengths.max())))
        count = int((lengths[:rows] - 1).clamp(min=0).sum())
        chosen = everyone.own_documents(torch.arange(len(lengths), device=ids.device)) < rows
        known = (torch.arange(1, ids.shape[1], device=ids.device) < own[:, None]) & chosen[:, None]
        mine = int(known.sum())
        if not mine:  # the head takes part all the same: processes wait for the gradients of one another
            return 0 * self.model.loss(hidden[:1, 0], ids[:1, 0])
        loss = self.model.loss(hidden[:, :-1][known], ids[:, 1:][known])
        return loss if everyone.rows is None else loss * (mine * everyone.processes / count)

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Loss on held-out pairs and how often the right document is nearest; on a dev split its measure too."""
        training = self.training
        self.eval()
        loss = hits = pairs = 0.0
        for batch in self.validation:
            batch = batch.to(self.model.device)  # noqa: PLW2901
            queries, _ = self.vectors(batch.query_ids, batch.query_lengths)
            documents, _ = self.vectors(batch.document_ids, batch.document_lengths)
            loss += float(self._ranking_loss(queries, documents, batch)) * len(queries)
            scores = _masked_scores(queries, documents, right_answers(batch.queries, batch.documents))
            hits += float((scores.argmax(1) == torch.arange(len(queries), device=scores.device)).sum())
            pairs += len(queries)
        metrics = {"validation_loss": loss / max(1.0, pairs), "validation_accuracy": hits / max(1.0, pairs)}
        criterion = metrics["validation_loss"]
        if self.dev_score is not None:
            metrics["dev_ndcg@10"] = self.dev_score()
            criterion = -metrics["dev_ndcg@10"]
        self.train(training)
        return Evaluation(criterion, metrics)

    def learning_rate_ratio(self, name: str) -> float:
        """Token vectors and weights, and the temperature, learn faster, the projection slower.

        All 256 states of a text enter each dimension of its vector through the projection: at full rate it would take
        the vector over within a few dozen steps, long before the states mean anything.
        """
        if name == "pooling.projection":
            return _PROJECTION_RATIO
        fast = name in ("pooling.token_vectors", "pooling.log_weights", "log_scale")
        return self.config.token_learning_rate_ratio if fast else 1.0

    def save_best(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Writes the language model's and the pooling's weights."""
        super().save_best(folder, dtype=dtype)
        save_weights(self.pooling, folder / POOLING_NAME, dtype=dtype)


def right_answers(queries: Tensor, documents: Tensor) -> Tensor:
    """Where a document that is not the query's own is known to answer it too.

    It is the same document again, or one paired with the same query elsewhere in the batch.

    Args:
        queries: (B,) numbers, equal for equal queries.
        documents: (B·(1 + N),) numbers, equal for equal documents; the B positives come first.

    Returns:
        (B, B·(1 + N)) booleans.
    """
    count = len(queries)
    same = documents[:count, None] == documents
    same[:, :count] |= queries[:, None] == queries
    return same & ~torch.eye(count, len(documents), dtype=torch.bool, device=same.device)


def _labels_of_all(batch: PairBatch, everyone: Gathering) -> PairBatch:
    """The numbers and the teacher's vectors of the pairs of all processes; texts stay where they are."""
    if everyone.rows is None:
        return batch
    return batch._replace(
        queries=everyone.pairs(batch.queries),
        documents=everyone.documents(batch.documents),
        query_targets=everyone.pairs(batch.query_targets),
        document_targets=everyone.pairs(batch.document_targets),
    )


def info_nce(
    queries: Tensor, documents: Tensor, others: Tensor, *, scale: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Mean of query → document and document → query cross-entropy.

    Args:
        queries: (B, E) unit vectors.
        documents: (B·(1 + N), E) unit vectors, the B positives first; all are candidates for every query.
        others: (B, B·(1 + N)) True where a document is no negative of a query, because it is another right answer.
        scale: inverse temperature.
        rows: the pairs that the mean is taken over; all when None.
    """
    count = len(queries)
    if rows is None:
        right = torch.arange(count, device=queries.device)
        scores = scale * _masked_scores(queries, documents, others)
        backward_scores = scores[:, :count].T
    else:
        right = rows
        scores = scale * _masked_scores(queries[rows], documents, others[rows])
        backward_scores = scale * _masked_scores(documents[rows], queries, others[:, :count].T[rows])
    return (functional.cross_entropy(scores, right) + functional.cross_entropy(backward_scores, right)) / 2


def _masked_scores(queries: Tensor, documents: Tensor, others: Tensor) -> Tensor:
    """(B, B·(1 + N)) cosines; further right answers of a query are out of the race."""
    return (queries @ documents.T).masked_fill(others, -1e4)


def similarity_matching(
    texts: Tensor, targets: Tensor, *, scale: Tensor, teacher_scale: float, rows: Tensor | None = None
) -> Tensor:
    """Mean KL divergence, over texts, from the teacher's distribution over the other texts to the student's.

    Args:
        texts: (M, E) unit vectors of the student.
        targets: (M, D) unit vectors of the teacher.
        scale: the student's inverse temperature.
        teacher_scale: the teacher's.
        rows: the texts that the mean is taken over; all when None.
    """
    itself = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    own, own_targets = texts, targets
    if rows is not None:
        itself, own, own_targets = itself[rows], texts[rows], targets[rows]
    student = (scale * own @ texts.T).masked_fill(itself, -1e4).log_softmax(1)
    teacher = (teacher_scale * own_targets @ targets.T).masked_fill(itself, -1e4).log_softmax(1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
