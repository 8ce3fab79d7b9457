"""Contrastive training in parts: batches of pairs, the loss, the closed-form start, learned pooling, the optimizer."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_texts
from torch import nn
from torch.nn import functional

from lm_retrieval.checkpoint import Checkpoint, build_pooling, load_weights
from lm_retrieval.config import TrainingConfig, TuningConfig
from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.errors import TrainingError
from lm_retrieval.models import LearnedPooling
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.closed_form import (
    fit_projection,
    fit_token_vectors,
    mean_matrix,
    principal_axes,
    rarity_weights,
)
from lm_retrieval.training.contrastive import ContrastiveObjective, info_nce, right_answers, similarity_matching
from lm_retrieval.training.optimizer import build_optimizer
from lm_retrieval.training.pair_batches import PairBatch, PairBatches, TokenizedPairs


def unit_rows(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


def make_pairs(count: int, *, sources: int = 1, negatives: int = 0) -> list[Pair]:
    """Pairs whose every text names its number, so that a batch shows which pairs it holds."""
    extra = make_texts(negatives * count, seed=9, sentences=1)
    return [
        Pair(
            f"{number} asks", text, f"d{number}", f"s{number % sources}", tuple(extra[number * negatives :][:negatives])
        )
        for number, text in enumerate(make_texts(count, seed=8))
    ]


def numbers_of(batch: PairBatch, tokenizer: Tokenizer) -> list[int]:
    rows = zip(batch.query_ids, batch.query_lengths, strict=True)
    return [int(tokenizer.decode(ids[:length].tolist()).split()[0]) for ids, length in rows]


def tokenized(pairs: list[Pair], tokenizer: Tokenizer, **targets: np.ndarray) -> TokenizedPairs:
    return TokenizedPairs(pairs, tokenizer=tokenizer, max_length=64, **targets)


# ---------------------------------------------------------------- batches


def test_texts_become_ids_cut_at_the_longest_length(tokenizer: Tokenizer) -> None:
    pairs = make_pairs(3, negatives=2)
    cut = TokenizedPairs(pairs, tokenizer=tokenizer, max_length=5)
    for place, pair in enumerate(pairs):
        assert cut.queries[place].tolist() == tokenizer.encode(pair.query)[:5]
        assert cut.positives[place].tolist() == tokenizer.encode(pair.positive)[:5]
        assert [ids.tolist() for ids in cut.negatives[place]] == [tokenizer.encode(t)[:5] for t in pair.negatives]


def test_the_fingerprint_changes_with_texts_and_targets(tokenizer: Tokenizer) -> None:
    pairs = make_pairs(4)
    targets = unit_rows(4, 3).astype(np.float16)
    found = {
        tokenized(pairs, tokenizer).fingerprint,
        tokenized(pairs[::-1], tokenizer).fingerprint,
        tokenized(pairs, tokenizer, query_targets=targets, document_targets=targets).fingerprint,
        tokenized(pairs, tokenizer, query_targets=targets[::-1], document_targets=targets).fingerprint,
        tokenized([pairs[0]._replace(query="other"), *pairs[1:]], tokenizer).fingerprint,
    }
    assert len(found) == 5
    assert tokenized(make_pairs(4), tokenizer).fingerprint in found


def test_every_pair_comes_at_most_once_an_epoch_and_a_batch_has_one_source(tokenizer: Tokenizer) -> None:
    pairs = make_pairs(64, sources=3)  # 22, 21 and 21 pairs: two batches of 8 each
    batches = PairBatches(tokenized(pairs, tokenizer), batch_size=8, seed=5)
    assert batches.steps_per_epoch == 6
    orders = []
    for epoch in range(8):
        seen = [numbers_of(batches.batch(epoch, step)[0], tokenizer) for step in range(6)]
        flat = [number for numbers in seen for number in numbers]
        assert len(set(flat)) == len(flat) == 48
        assert all(len({number % 3 for number in numbers}) == 1 for numbers in seen)
        orders.append(flat)
    assert len({tuple(order) for order in orders}) == 8
    assert set().union(*orders) == set(range(64))  # what one epoch leaves over another one takes


def test_sources_too_small_for_a_batch_are_put_together(tokenizer: Tokenizer) -> None:
    pairs = [
        *make_pairs(20),
        *(pair._replace(query=f"{20 + n} asks", source=f"tiny{n}") for n, pair in enumerate(make_pairs(9))),
    ]
    batches = PairBatches(tokenized(pairs, tokenizer), batch_size=8, seed=0)
    seen = [numbers_of(batches.batch(0, step)[0], tokenizer) for step in range(batches.steps_per_epoch)]
    assert sorted(min(numbers) >= 20 for numbers in seen) == [False, False, True]
    assert all(len({number >= 20 for number in numbers}) == 1 for numbers in seen)


def test_pairs_of_a_batch_are_of_like_length(tokenizer: Tokenizer) -> None:
    texts = [" ".join(make_texts(1 + number % 8, seed=number, sentences=1)) for number in range(64)]
    pairs = [Pair(f"{number} asks", text, str(number), "s") for number, text in enumerate(texts)]
    batches = PairBatches(TokenizedPairs(pairs, tokenizer=tokenizer, max_length=500), batch_size=8, seed=0)
    ranges = []
    for step in range(8):
        lengths = batches.batch(0, step)[0].document_lengths
        ranges.append((int(lengths.min()), int(lengths.max())))
    ranges.sort()
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ranges))


def test_a_batch_holds_positives_then_negatives_padded_with_zeros(tokenizer: Tokenizer) -> None:
    pairs = make_pairs(6, negatives=2)
    pairs[4] = pairs[4]._replace(document="d1")
    targets = unit_rows(6, 3).astype(np.float16)
    material = tokenized(pairs, tokenizer, query_targets=targets, document_targets=targets[::-1].copy())
    batch = PairBatches(material, batch_size=6, seed=0).gather(np.array([4, 1, 0]))
    texts = [pairs[row].positive for row in (4, 1, 0)] + [text for row in (4, 1, 0) for text in pairs[row].negatives]
    assert batch.document_ids.shape[0] == 9
    for ids, length, text in zip(batch.document_ids, batch.document_lengths, texts, strict=True):
        assert ids[:length].tolist() == tokenizer.encode(text)
        assert not ids[length:].any()
    assert batch.documents.tolist() == [1, 1, 0, -1, -1, -1, -1, -1, -1]  # pairs 4 and 1 share their document
    np.testing.assert_array_equal(batch.query_targets.numpy(), targets[[4, 1, 0]].astype(np.float32))
    np.testing.assert_array_equal(batch.document_targets.numpy(), targets[[1, 4, 5]].astype(np.float32))


def test_the_parts_of_a_batch_are_the_batch(tokenizer: Tokenizer) -> None:
    material = tokenized(make_pairs(50), tokenizer)
    batches = PairBatches(material, batch_size=15, seed=1, multiple_of=4)
    assert batches.batch_size == 12
    whole = numbers_of(batches.batch(3, 2)[0], tokenizer)
    parts = batches.batch(3, 2, parts=4)
    assert [len(part.query_ids) for part in parts] == [3, 3, 3, 3]
    assert [number for part in parts for number in numbers_of(part, tokenizer)] == whole


def test_seed_epoch_and_step_alone_decide_which_tokens_are_dropped(tokenizer: Tokenizer) -> None:
    def batch(epoch: int, step: int, *, seed: int = 2, dropout: float = 0.3) -> PairBatch:
        material = tokenized(make_pairs(40), tokenizer)
        return PairBatches(material, batch_size=8, seed=seed, token_dropout=dropout).batch(epoch, step)[0]

    first = batch(1, 3)
    assert all(torch.equal(one, other) for one, other in zip(first, batch(1, 3), strict=True))
    for other in (batch(1, 3, seed=3), batch(2, 3), batch(1, 2)):
        assert first.document_ids.shape != other.document_ids.shape or not torch.equal(
            first.document_ids, other.document_ids
        )
    complete = batch(1, 3, dropout=0.0)
    assert complete.documents.tolist() == first.documents.tolist()
    share = 1 - int(first.document_lengths.sum()) / int(complete.document_lengths.sum())
    assert share == pytest.approx(0.3, abs=0.1)
    for kept, all_ids in zip(first.document_ids.tolist(), complete.document_ids.tolist(), strict=True):
        remaining = iter(all_ids)
        assert all(token in remaining for token in kept if token)  # a subsequence


def test_a_text_never_loses_all_its_tokens(tokenizer: Tokenizer) -> None:
    pairs = [Pair("the", "a", str(number), "s") for number in range(8)]
    batches = PairBatches(tokenized(pairs, tokenizer), batch_size=8, seed=0, token_dropout=0.99)
    assert batches.batch(0, 0)[0].query_lengths.tolist() == [1] * 8


def test_too_few_pairs_for_a_batch_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingError, match="only 1 pairs to learn from"):
        PairBatches(tokenized(make_pairs(1), tokenizer), batch_size=8, seed=0)
    with pytest.raises(TrainingError, match="only 3 pairs to learn from"):
        PairBatches(tokenized(make_pairs(3), tokenizer), batch_size=8, seed=0, multiple_of=4)
    assert PairBatches(tokenized(make_pairs(3), tokenizer), batch_size=8, seed=0).steps_per_epoch == 1


def test_a_step_counts_the_tokens_of_both_sides(tokenizer: Tokenizer) -> None:
    pairs = make_pairs(16)
    tokens = sum(len(tokenizer.encode(text)) for pair in pairs for text in (pair.query, pair.positive))
    assert PairBatches(tokenized(pairs, tokenizer), batch_size=4, seed=0).tokens_per_step == round(tokens / 4)


# ---------------------------------------------------------------- losses


def info_nce_by_hand(queries: np.ndarray, documents: np.ndarray, numbers: list[int], scale: float) -> float:
    count = len(queries)
    losses = []
    for row in range(count):
        rivals = [column for column in range(len(documents)) if column == row or numbers[column] != numbers[row]]
        scores = [scale * queries[row] @ documents[column] for column in rivals]
        losses.append(math.log(sum(map(math.exp, scores))) - scale * queries[row] @ documents[row])
    for column in range(count):
        rivals = [row for row in range(count) if row == column or numbers[column] != numbers[row]]
        scores = [scale * queries[row] @ documents[column] for row in rivals]
        losses.append(math.log(sum(map(math.exp, scores))) - scale * queries[column] @ documents[column])
    return sum(losses) / (2 * count)


def answers(documents: list[int], queries: int) -> torch.Tensor:
    return right_answers(torch.arange(queries), torch.tensor(documents))


def test_two_documents_of_one_query_are_not_each_others_negatives() -> None:
    found = right_answers(torch.tensor([4, 5, 4]), torch.tensor([1, 2, 3, -1, -1, 2]))
    assert found.int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("numbers", "negatives"),
    [([0, 1, 2, 3, 4], 0), ([0, 1, 0, 3, 0], 0), ([0, 1, 2, 3, 4], 2), ([7, 1, 7, 3, 1], 3), ([2, 2, 2, 2, 2], 0)],
)
def test_info_nce_equals_a_plain_loop(numbers: list[int], negatives: int) -> None:
    queries, documents = unit_rows(5, 6), unit_rows(5 * (1 + negatives), 6, seed=1)
    every = [*numbers, *([-1] * 5 * negatives)]
    found = info_nce(tensor(queries), tensor(documents), answers(every, 5), scale=torch.tensor(7.0))
    assert float(found) == pytest.approx(info_nce_by_hand(queries, documents, every, 7.0), rel=1e-5)


def test_info_nce_of_perfect_and_of_useless_vectors() -> None:
    corners, numbers = torch.eye(8), answers(list(range(8)), 8)
    assert float(info_nce(corners, corners, numbers, scale=torch.tensor(50.0))) == pytest.approx(0.0, abs=1e-6)
    same = corners[:1].repeat(8, 1)
    assert float(info_nce(same, same, numbers, scale=torch.tensor(50.0))) == pytest.approx(math.log(8))


def test_a_second_copy_of_the_right_document_is_no_rival() -> None:
    query, documents = tensor(unit_rows(1, 6)), tensor(unit_rows(3, 6, seed=2))
    with_copy = info_nce(query, documents, answers([0, 1, 0], 1), scale=torch.tensor(5.0))
    without = info_nce(query, documents[:2], answers([0, 1], 1), scale=torch.tensor(5.0))
    assert float(with_copy) == pytest.approx(float(without))


def test_similarity_matching_equals_the_divergence_by_hand() -> None:
    texts, targets = unit_rows(6, 4), unit_rows(6, 9, seed=1)

    def others(vectors: np.ndarray, row: int, scale: float) -> np.ndarray:
        weights = np.exp(scale * np.delete(vectors, row, axis=0) @ vectors[row])
        return weights / weights.sum()

    expected = 0.0
    for row in range(6):
        student, teacher = others(texts, row, 3.0), others(targets, row, 11.0)
        expected += float((teacher * np.log(teacher / student)).sum()) / 6
    found = similarity_matching(tensor(texts), tensor(targets), scale=torch.tensor(3.0), teacher_scale=11.0)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    turned = np.linalg.qr(np.random.default_rng(3).standard_normal((9, 9)))[0]
    same = similarity_matching(tensor(targets @ turned), tensor(targets), scale=torch.tensor(11.0), teacher_scale=11.0)
    assert float(same) == pytest.approx(0.0, abs=1e-5)


# ---------------------------------------------------------------- the objective


@pytest.fixture(scope="module")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    """One of this module's own: an objective decides which of the model's parameters are trained."""
    return Checkpoint.load(checkpoint_path)


@pytest.fixture(scope="module")
def tuning_parts(checkpoint: Checkpoint) -> tuple[LearnedPooling, PairBatch]:
    """A pooling with weights of its own, and a batch with a shared document, negatives and a teacher's vectors."""
    torch.manual_seed(3)
    pooling = build_pooling(checkpoint.model)
    for parameter in pooling.parameters():
        parameter.data.normal_(std=0.3)
    pooling.state_scale.data.abs_().add_(0.5)
    pairs = make_pairs(8, negatives=1)
    pairs[5] = pairs[5]._replace(document="d2")
    targets = unit_rows(8, 5, seed=4).astype(np.float16)
    material = tokenized(pairs, checkpoint.tokenizer, query_targets=targets, document_targets=targets[::-1].copy())
    return pooling, PairBatches(material, batch_size=8, seed=0).gather(np.arange(8))


def build_objective(
    checkpoint: Checkpoint, parts: tuple[LearnedPooling, PairBatch], **settings: object
) -> ContrastiveObjective:
    config = TuningConfig(**{"contrastive_weight": 0.0, "teacher_weight": 0.0, **settings})  # type: ignore[arg-type]
    return ContrastiveObjective(checkpoint.model, parts[0], config=config, validation=[parts[1]]).eval()


@torch.no_grad()
def loss_of(objective: ContrastiveObjective, batch: PairBatch) -> float:
    loss, state = objective(batch, None)
    assert state is None
    return float(loss)


def expected_parts(checkpoint: Checkpoint, parts: tuple[LearnedPooling, PairBatch]) -> tuple[float, float, float]:
    """The three terms, from vectors that the encoder's own path makes one text at a time."""
    pooling, batch = parts

    def vectors(ids: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
        rows = []
        for row, length in zip(ids, lengths.tolist(), strict=True):
            hidden = checkpoint.model(row[None, :length]).hidden
            rows.append(pooling(hidden, row[None, :length], torch.tensor([length]))[0].numpy())
        return np.stack(rows) / np.linalg.norm(np.stack(rows), axis=1, keepdims=True)

    with torch.no_grad():
        queries = vectors(batch.query_ids, batch.query_lengths)
        documents = vectors(batch.document_ids, batch.document_lengths)
        ranking = info_nce_by_hand(queries, documents, batch.documents.tolist(), 20.0)
        texts = np.concatenate((queries, documents[:8]))
        targets = torch.cat((batch.query_targets, batch.document_targets))
        matching = similarity_matching(tensor(texts), targets, scale=torch.tensor(20.0), teacher_scale=10.0)
        losses = []
        for ids, length in zip(batch.document_ids, batch.document_lengths.tolist(), strict=True):
            logits = checkpoint.model.logits(checkpoint.model(ids[None, : length - 1]).hidden[0])
            losses += functional.cross_entropy(logits, ids[1:length], reduction="none").tolist()
    return ranking, float(matching), float(np.mean(losses))


def test_the_loss_is_the_weighted_sum_of_its_terms(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    ranking, matching, next_token = expected_parts(checkpoint, tuning_parts)
    common = {"temperature": 0.05, "teacher_temperature": 0.1}
    for settings, expected in (
        ({"contrastive_weight": 1.0}, ranking),
        ({"teacher_weight": 1.0}, matching),
        ({"next_token_weight": 1.0}, next_token),
        (
            {"contrastive_weight": 0.5, "teacher_weight": 2.0, "next_token_weight": 0.25},
            0.5 * ranking + 2 * matching + 0.25 * next_token,
        ),
    ):
        objective = build_objective(checkpoint, tuning_parts, **common, **settings)
        assert loss_of(objective, tuning_parts[1]) == pytest.approx(expected, rel=2e-4)


def test_without_a_teachers_vectors_its_term_is_left_out(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    objective = build_objective(checkpoint, tuning_parts, contrastive_weight=1.0, teacher_weight=1.0)
    alone = build_objective(checkpoint, tuning_parts, contrastive_weight=1.0)
    none = torch.zeros(8, 0)
    untaught = tuning_parts[1]._replace(query_targets=none, document_targets=none)
    assert loss_of(objective, untaught) == loss_of(alone, tuning_parts[1])


def test_the_inverse_temperature_is_at_most_a_hundred(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    hot, limit = (build_objective(checkpoint, tuning_parts, contrastive_weight=1.0) for _ in range(2))
    hot.log_scale.data.fill_(9.0)
    limit.log_scale.data.fill_(math.log(100.0))
    assert loss_of(hot, tuning_parts[1]) == pytest.approx(loss_of(limit, tuning_parts[1]), rel=1e-5)


def test_evaluation_is_the_loss_and_how_often_the_right_document_is_nearest(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    pooling, batch = tuning_parts
    objective = build_objective(checkpoint, tuning_parts, contrastive_weight=1.0)
    with torch.no_grad():
        queries = objective.vectors(batch.query_ids, batch.query_lengths)[0].numpy()
        documents = objective.vectors(batch.document_ids, batch.document_lengths)[0].numpy()
    hits = 0
    for row, query in enumerate(queries):
        rivals = [n for n in range(16) if n == row or batch.documents[n] != batch.documents[row]]
        hits += max(rivals, key=lambda n: query @ documents[n]) == row
    evaluation = objective.evaluate()
    assert evaluation.metrics["validation_accuracy"] == hits / 8
    assert evaluation.metrics["validation_loss"] == pytest.approx(loss_of(objective, batch))
    assert evaluation.loss == evaluation.metrics["validation_loss"]
    config = TuningConfig(teacher_weight=0.0)
    on_dev = ContrastiveObjective(
        checkpoint.model, pooling, config=config, validation=[batch], dev_score=lambda: 0.75
    ).train()
    assert on_dev.evaluate().loss == -0.75
    assert on_dev.evaluate().metrics["dev_ndcg@10"] == 0.75
    assert on_dev.training
    checkpoint.model.eval()


def test_what_does_not_take_part_in_the_loss_is_not_trained(
    make_checkpoint: Callable[..., Path], tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    head = {"output.weight", "output.bias"}

    def trained(**settings: object) -> tuple[set[str], set[str]]:
        checkpoint = Checkpoint.load(make_checkpoint())
        objective = build_objective(checkpoint, tuning_parts, contrastive_weight=1.0, **settings)
        objective(tuning_parts[1], None)[0].backward()
        parameters = dict(checkpoint.model.named_parameters())
        return set(parameters), {name for name, parameter in parameters.items() if parameter.grad is not None}

    every, found = trained(train_language_model=True)
    assert found == every - head
    assert trained(train_language_model=True, next_token_weight=0.1)[1] == every
    assert trained(train_language_model=True, words_only=True)[1] == set()
    assert trained(train_language_model=False)[1] == set()


def test_words_alone_make_the_vectors_where_only_they_learn(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    pooling, batch = tuning_parts
    objective = build_objective(checkpoint, tuning_parts, contrastive_weight=1.0, words_only=True)
    with torch.no_grad():
        found, hidden = objective.vectors(batch.query_ids, batch.query_lengths)
        words = pooling(None, batch.query_ids, batch.query_lengths)
    assert hidden is None
    torch.testing.assert_close(found, functional.normalize(words, dim=1))


def test_token_vectors_and_temperature_learn_faster(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch]
) -> None:
    objective = build_objective(checkpoint, tuning_parts, token_learning_rate_ratio=4.0)
    fast = {name for name, _ in objective.named_parameters() if objective.learning_rate_ratio(name) == 4.0}
    assert fast == {"pooling.token_vectors", "pooling.log_weights", "log_scale"}
    assert objective.learning_rate_ratio("pooling.projection") == 0.1


def test_the_best_weights_are_those_of_model_and_pooling(
    checkpoint: Checkpoint, tuning_parts: tuple[LearnedPooling, PairBatch], tmp_path: Path
) -> None:
    objective = build_objective(checkpoint, tuning_parts)
    objective.save_best(tmp_path, dtype=torch.float32)
    fresh = build_pooling(checkpoint.model)
    load_weights(fresh, tmp_path / "pooling.safetensors")
    for name, parameter in tuning_parts[0].named_parameters():
        assert torch.equal(dict(fresh.named_parameters())[name], parameter), name
    whole = (tmp_path / "pooling.safetensors").stat().st_size
    objective.save_best(tmp_path, dtype=torch.float16)
    assert (tmp_path / "pooling.safetensors").stat().st_size == pytest.approx(whole / 2, rel=0.01)
    load_weights(fresh, tmp_path / "pooling.safetensors")
    torch.testing.assert_close(fresh.token_vectors, tuning_parts[0].token_vectors, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- learned pooling


def pooled_by_hand(pooling: LearnedPooling, hidden: np.ndarray | None, ids: list[int]) -> np.ndarray:
    parts = {name: parameter.detach().double().numpy() for name, parameter in pooling.named_parameters()}
    weights = np.exp(parts["log_weights"][ids])
    weights = weights / weights.sum()
    words = sum(weight * parts["token_vectors"][token] for weight, token in zip(weights, ids, strict=True))
    if hidden is None:
        return words
    mean = sum(weight * state for weight, state in zip(weights, hidden, strict=True))
    return parts["projection"] @ ((mean - parts["state_mean"]) / parts["state_scale"]) + words


@pytest.fixture
def pooling() -> LearnedPooling:
    torch.manual_seed(1)
    made = LearnedPooling(vocab_size=12, hidden_dim=5, dim=7)
    for parameter in made.parameters():
        parameter.data.normal_()
    made.state_scale.data.abs_().add_(0.2)
    return made


def test_learned_pooling_is_its_formula_text_by_text(pooling: LearnedPooling) -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(12, (4, 6), generator=generator)
    hidden = torch.randn(4, 6, 5, generator=generator)
    lengths = torch.tensor([6, 1, 0, 4])
    with torch.no_grad():
        found, words = pooling(hidden, ids, lengths), pooling(None, ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        if not length:
            assert not found[row].any()
            assert not words[row].any()
            continue
        tokens = ids[row, :length].tolist()
        expected = pooled_by_hand(pooling, hidden[row, :length].double().numpy(), tokens)
        assert found[row].numpy() == pytest.approx(expected, abs=1e-4)
        assert words[row].numpy() == pytest.approx(pooled_by_hand(pooling, None, tokens), abs=1e-4)


def test_what_stands_in_the_padding_changes_neither_vectors_nor_gradients(pooling: LearnedPooling) -> None:
    hidden, lengths = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 3])
    pooling.eval()  # while training, the mean of the states moves on
    results = []
    for padding in (0, 11):
        ids = torch.tensor([[3, 4, padding, padding], [5, 3, 4, padding]])
        pooling.zero_grad()
        vectors = pooling(hidden, ids, lengths)
        vectors.square().sum().backward()
        assert pooling.token_vectors.grad is not None
        assert pooling.log_weights.grad is not None
        results.append((vectors.detach(), pooling.token_vectors.grad.clone(), pooling.log_weights.grad.clone()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert results[0][1].abs().sum(1).nonzero().flatten().tolist() == [3, 4, 5]


def test_state_mean_and_scale_are_stored_but_not_trained(pooling: LearnedPooling) -> None:
    assert {name for name, parameter in pooling.named_parameters() if not parameter.requires_grad} == {
        "state_mean",
        "state_scale",
    }


def test_the_mean_follows_the_states_while_training_and_only_then() -> None:
    pooling = LearnedPooling(vocab_size=5, hidden_dim=2, dim=2)
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[5.0, 2.0], [7.0, 6.0]]])  # mean states (2, 2) and (6, 4)
    arguments = (hidden, torch.tensor([[1, 4], [2, 3]]), torch.tensor([2, 2]))
    with torch.no_grad():
        pooling(*arguments)
    pooling.eval()(*arguments)
    assert pooling.state_mean.tolist() == [0.0, 0.0]
    for _ in range(400):
        pooling.train()(*arguments)
    assert pooling.state_mean.tolist() == pytest.approx([4.0, 3.0], abs=0.01)


def test_a_fresh_pooling_is_a_plain_mean() -> None:
    fresh = LearnedPooling(vocab_size=5, hidden_dim=2, dim=2)
    fresh.token_vectors.data.copy_(torch.arange(10.0).view(5, 2))
    fresh.projection.data.copy_(torch.eye(2))
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]]])
    found = fresh(hidden, torch.tensor([[1, 4, 2]]), torch.tensor([2]))
    # tokens 1 and 4 are (2, 3) and (8, 9); the states' mean is (2, 2)
    assert found[0].tolist() == pytest.approx([7.0, 8.0])


# ---------------------------------------------------------------- closed form


def random_texts(count: int, vocab: int, *, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(vocab, size=generator.integers(1, 9)).astype(np.uint16) for _ in range(count)]


def dense_means(texts: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    matrix = np.zeros((len(texts), len(weights)))
    for row, ids in enumerate(texts):
        for token in ids:
            matrix[row, token] += weights[token]
    totals = matrix.sum(1, keepdims=True)
    return matrix / np.where(totals > 0, totals, 1)


def test_rare_tokens_weigh_more() -> None:
    weights = rarity_weights([np.array([0, 0, 1]), np.array([0, 2])], vocab_size=4)
    # shares 3/5, 1/5, 1/5 and 0
    assert weights == pytest.approx([0.001 / 0.601, 0.001 / 0.201, 0.001 / 0.201, 1.0], rel=1e-5)


def test_the_mean_matrix_shares_each_text_among_its_tokens() -> None:
    texts = [np.array([1, 1, 3]), np.array([], np.int64), np.array([0])]
    weights = np.array([0.5, 1.0, 9.0, 2.0], np.float32)
    expected = [[0, 0.5, 0, 0.5], [0, 0, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(mean_matrix(texts, weights).toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "vocab"), [(80, 15), (10, 40)], ids=["more texts than tokens", "fewer"])
@pytest.mark.parametrize("with_prior", [False, True])
def test_token_vectors_solve_the_normal_equations_of_ridge_regression(count: int, vocab: int, with_prior: bool) -> None:
    generator = np.random.default_rng(3)
    texts = random_texts(count, vocab - 2)  # the last two tokens never occur
    weights = generator.uniform(0.1, 1.0, vocab).astype(np.float32)
    targets = generator.standard_normal((count, 4)).astype(np.float32)
    prior = generator.standard_normal((vocab, 4)).astype(np.float32) if with_prior else None
    found = fit_token_vectors(texts, targets, weights=weights, ridge=0.3, prior=prior)
    start = np.zeros((vocab, 4)) if prior is None else prior
    matrix = dense_means(texts, weights)
    used = np.flatnonzero(matrix.any(axis=0))
    assert (count >= len(used)) == (count == 80)
    strength = 0.3 * (matrix**2).sum() / len(used)
    gram = matrix.T @ matrix + strength * np.eye(vocab)
    expected = start + np.linalg.solve(gram, matrix.T @ (targets - matrix @ start))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_array_equal(found[-2:], start[-2:].astype(np.float32))


def test_token_vectors_of_a_weak_ridge_give_the_targets_back() -> None:
    truth = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
    texts = random_texts(200, 10)
    weights = np.ones(10, np.float32)
    targets = mean_matrix(texts, weights) @ truth
    np.testing.assert_allclose(fit_token_vectors(texts, targets, weights=weights, ridge=1e-6), truth, atol=1e-3)


def test_the_projection_is_the_least_squares_solution_with_ridge() -> None:
    generator = np.random.default_rng(2)
    states, targets = generator.standard_normal((50, 6)), generator.standard_normal((50, 3))
    found = fit_projection(states.astype(np.float32), targets.astype(np.float32), ridge=0.2)
    rows = np.vstack((states, math.sqrt(0.2 * 50) * np.eye(6)))
    expected = np.linalg.lstsq(rows, np.vstack((targets, np.zeros((6, 3)))), rcond=None)[0].T
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_principal_axes_keep_inner_products() -> None:
    vectors = np.random.default_rng(4).standard_normal((30, 3)) @ np.random.default_rng(5).standard_normal((3, 8))
    for dim in (3, 5, 8, 11):
        axes = principal_axes(vectors, dim=dim)
        assert axes.shape == (8, dim)
        np.testing.assert_allclose(vectors @ axes @ axes.T @ vectors.T, vectors @ vectors.T, atol=1e-2)
    assert not principal_axes(vectors, dim=11)[:, 8:].any()
    largest = np.linalg.svd(vectors)[2][0]
    assert abs(principal_axes(vectors, dim=1)[:, 0] @ largest) == pytest.approx(1.0, abs=1e-4)


# ---------------------------------------------------------------- optimizer


def test_each_parameter_gets_its_multiple_of_the_learning_rate_and_only_matrices_decay() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    module[2].requires_grad_(False)
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(module, config, ratio=lambda name: 3.0 if name.startswith("1.") else 1.0)
    found = {
        id(parameter): (group["weight_decay"], group["learning_rate_ratio"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {"0.weight": (0.5, 1.0), "0.bias": (0.0, 1.0), "1.weight": (0.5, 3.0), "1.bias": (0.0, 3.0)}
    parameters = dict(module.named_parameters())
    assert found == {id(parameters[name]): values for name, values in expected.items()}
    plain = build_optimizer(nn.Linear(2, 3), config)
    assert sorted(group["weight_decay"] for group in plain.param_groups) == [0.0, 0.5]
    assert {group["learning_rate_ratio"] for group in plain.param_groups} == {1.0}
