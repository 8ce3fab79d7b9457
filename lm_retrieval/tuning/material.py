"""What a tuning run learns from: pairs, found or made, with the teacher's word on them, and what is held out."""

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.config import RunConfig, TuningConfig
from lm_retrieval.corpus import Corpus
from lm_retrieval.corpus.pairs import Pair, corpus_pairs, held_out, holds_pairs, judged_pairs, read_pairs, span_pairs
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError
from lm_retrieval.evaluation.evaluator import evaluate
from lm_retrieval.evaluation.similarity import ranked_by_similarity
from lm_retrieval.records import Document
from lm_retrieval.storage import locate, resolved
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.pair_batches import TokenizedPairs
from lm_retrieval.training.teacher import Teacher
from lm_retrieval.tuning.mining import mine_negatives
from lm_retrieval.tuning.teachers import BlendedTeacher, find_teacher

logger = logging.getLogger(__name__)

MIN_DOCUMENTS = 50
NO_LABELS = "none"
_DEV_DOCUMENTS = 20_000
_MOST_WORDS = 80_000
_WORD = re.compile(r"\b[^\W\d_]\w*(?:['’-]\w+)*")


@dataclass(frozen=True)
class Material:
    """What a run learns from.

    Attributes:
        dev_score: nDCG@10 of an encoder on the corpus's dev split, where it has one.
        fit_to: the teacher that the pooling is fitted to before training; None where it starts as it is.
        words: of the texts, the most frequent first: fitted first, since a teacher says much about them in little time.
        facts: for the manifest.
    """

    training: TokenizedPairs
    validation: TokenizedPairs
    dev_score: Callable[[Encoder], float] | None
    fit_to: Teacher | None
    words: list[str]
    facts: dict[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: one is enough to score and to fit."""
        return vars(self) | {"dev_score": None, "fit_to": None, "words": []}


def gather(
    corpus: Corpus, start: Checkpoint, config: RunConfig, *, labels: str | None, teacher: str, cache: Path
) -> Material:
    """Pairs of a corpus or of files, split and tokenized.

    Raises:
        CorpusError: too little text, or labels that cannot be used.
        CheckpointError, ConfigError: a teacher that cannot be used.
    """
    settings = config.tuning
    documents: dict[str, Document] = {}
    encoder = _encoder_of(start)
    if labels is None and holds_pairs(corpus.path):
        pairs = _usable(list(read_pairs(corpus.path)), settings, start.tokenizer)
        pairs += span_pairs(pairs, spans_per_positive=settings.spans_per_positive)
    else:
        documents = {document.doc_id: document for document in corpus.documents()}
        _refuse_small(documents, corpus)
        pairs = _labelled(corpus, documents, labels)
        if pairs and settings.hard_negatives:
            pairs = mine_negatives(pairs, documents, count=settings.hard_negatives, encoder=encoder)
        seed, spans = config.training.seed, settings.spans_per_document
        pairs += corpus_pairs(documents.values(), seed=seed, spans_per_document=spans)
        pairs = _usable(pairs, settings, start.tokenizer)
    validation, training = _split(pairs, settings.validation_pairs, of_corpus=bool(documents))
    guide = find_teacher(teacher, documents=documents, cache=cache, encoder=encoder, held_out=validation)
    # an encoder that has been taught already is fitted again only to a teacher that was made around it
    fit = guide is not None and (start.pooling is None or isinstance(guide, BlendedTeacher))
    logger.info("%s pairs to learn from, %s held out", f"{len(training):,}", f"{len(validation):,}")
    return Material(
        training=_tokenized(training, start, settings, guide),
        validation=_tokenized(validation, start, settings, guide),
        dev_score=None if labels == NO_LABELS else _dev_score(corpus, documents),
        fit_to=guide if fit else None,
        words=frequent_words(text for pair in training for text in (pair.query, pair.positive)) if fit else [],
        facts={
            "corpus_path": str(resolved(corpus.path)),
            "pairs": len(training),
            "teacher": guide.name if guide else None,
            "teacher_sha256": guide.fingerprint if guide else None,
            "tuned_from": start.name,
        },
    )


def _refuse_small(documents: dict[str, Document], corpus: Corpus) -> None:
    different = len({document.content for document in documents.values() if document.content.strip()})
    if different < MIN_DOCUMENTS:
        found = f"{len(documents):,} documents, {different:,} different ones with text"
        raise CorpusError(
            f"{corpus.path}: too little to tune on ({found}; at least {MIN_DOCUMENTS} are needed); "
            "use the encoder as it is, or add text"
        )


def _labelled(corpus: Corpus, documents: dict[str, Document], labels: str | None) -> list[Pair]:
    if labels == NO_LABELS or (labels is None and "train" not in corpus.splits):
        return []
    split = labels or "train"
    if split in corpus.splits:
        return list(judged_pairs(documents, corpus.queries(), corpus.qrels(split)))
    if locate(split).exists():
        return list(read_pairs(locate(split), documents=documents))
    found = ", ".join([*corpus.splits, NO_LABELS])
    raise CorpusError(f"--labels {split}: neither a split of {corpus.path} nor a file; splits found: {found}")


def _usable(pairs: list[Pair], settings: TuningConfig, tokenizer: Tokenizer) -> list[Pair]:
    """Pairs with text on both sides, texts cut, in random order; at most `max_pairs`.

    The order is the same for every seed: runs that differ in it are compared on the same held-out pairs, and a
    teacher reads no text twice.
    """
    order = list(range(len(pairs)))
    random.Random(0).shuffle(order)
    usable = []
    for place in order[: settings.max_pairs]:
        pair = pairs[place]
        cut = pair._replace(
            query=clip(pair.query, settings.max_text_characters),
            positive=clip(pair.positive, settings.max_text_characters),
            negatives=tuple(clip(text, settings.max_text_characters) for text in pair.negatives),
        )
        if tokenizer.encode(cut.query) and tokenizer.encode(cut.positive):
            usable.append(cut)
    if len({pair.document for pair in usable}) < MIN_DOCUMENTS:
        raise CorpusError(
            f"only {len(usable):,} pairs from {len({pair.document for pair in usable}):,} documents to learn from; "
            f"at least {MIN_DOCUMENTS} documents with a title and text, or with 24 words, are needed"
        )
    return usable


def frequent_words(texts: Iterable[str], *, most: int = _MOST_WORDS) -> list[str]:
    """The words of some texts, the most frequent first."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    return [word for word, _ in counts.most_common(most)]


def clip(text: str, max_characters: int) -> str:
    """The text's first characters, cut between words."""
    return text if len(text) <= max_characters else text[:max_characters].rsplit(" ", 1)[0]


def _split(pairs: list[Pair], wanted: int, *, of_corpus: bool) -> tuple[list[Pair], list[Pair]]:
    """Held-out and training pairs; no document is on both sides.

    Of a corpus always the same documents are held out, whatever the seed: hybrid's weight is calibrated on them.
    """
    reserved = [pair for pair in pairs if held_out(pair.document)] if of_corpus else []
    if len({pair.document for pair in reserved}) >= 2:
        return reserved[:wanted], [pair for pair in pairs if not held_out(pair.document)]
    limit = max(1, min(wanted, len(pairs) // 10))
    order = list(dict.fromkeys(pair.document for pair in pairs))
    documents = set(order[: max(2, min(limit, len(order) // 10))])
    validation = [pair for pair in pairs if pair.document in documents][:limit]
    return validation, [pair for pair in pairs if pair.document not in documents]


def _tokenized(
    pairs: Sequence[Pair], start: Checkpoint, settings: TuningConfig, teacher: Teacher | None
) -> TokenizedPairs:
    """Token ids and the teacher's vectors."""
    return TokenizedPairs(
        pairs,
        tokenizer=start.tokenizer,
        max_length=min(settings.max_length_tokens, start.model.context_length or settings.max_length_tokens),
        query_targets=teacher.encode([pair.query for pair in pairs]) if teacher else None,
        document_targets=teacher.encode([pair.positive for pair in pairs]) if teacher else None,
    )


def _encoder_of(start: Checkpoint) -> Encoder | None:
    """The encoder that a checkpoint is already; a mere language model ranks too badly to mine with."""
    return Encoder.load(start.path, dtype="auto") if start.pooling is not None else None


def _dev_score(corpus: Corpus, documents: dict[str, Document]) -> Callable[[Encoder], float] | None:
    """nDCG@10 on the corpus's dev split, where it has one."""
    if "dev" not in corpus.splits or not documents or len(documents) > _DEV_DOCUMENTS:
        return None
    qrels = corpus.qrels("dev")
    texts = {query.query_id: query.text for query in corpus.queries() if query.query_id in qrels}
    doc_ids = list(documents)
    contents = [documents[doc_id].content for doc_id in doc_ids]

    def score(encoder: Encoder) -> float:
        queries, vectors = encoder.encode(list(texts.values())), encoder.encode(contents)
        run = ranked_by_similarity(list(texts), queries, doc_ids, vectors, depth=10)
        return evaluate(qrels, run, measures=("nDCG@10",)).measures["nDCG@10"]

    return score
