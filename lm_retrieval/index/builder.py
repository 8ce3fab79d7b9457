"""Building an index folder: chunk, encode, write shards, then FAISS, BM25 and the manifest.

Everything is made in a staging folder beside the target and moved over it at the end: readers keep the old index until
the new one is whole, and a killed run finds its finished shards again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lm_retrieval.artifacts import (
    folder_lock,
    read_manifest,
    recover_folder,
    replace_folder,
    require_folder,
    storage_errors,
    write_json,
    write_manifest,
)
from lm_retrieval.corpus import Corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.encoding.query import QueryEncoder
from lm_retrieval.errors import ConfigError, CorpusError, IndexFormatError, MismatchError
from lm_retrieval.index import vectors
from lm_retrieval.index.arrays import array_writer
from lm_retrieval.index.calibration import calibrate
from lm_retrieval.index.engines import Engine, Site, ThisProcess
from lm_retrieval.index.lexical import K1, B, LexicalIndex
from lm_retrieval.index.report import BuildReport, Clock
from lm_retrieval.index.shards import Outcome, Work, chunks_of, finished, plan
from lm_retrieval.index.store import CorpusDigest, EarlierPlaces, Store, drop_shards_from
from lm_retrieval.progress import progress
from lm_retrieval.records import Document
from lm_retrieval.runtime import memory_budget
from lm_retrieval.storage import locate, resolved

KIND = "index"
ENCODER_NAME = "encoder"
VECTORS_NAME = "vectors.faiss"
LEXICAL_NAME = "lexical"
CHUNKS_NAME = "chunks.npy"
_PLAN_NAME = "plan.json"
SHARD_CHUNKS = 4096
_PROBES = 32
_PROBE_CHARACTERS = 120
_SAME_VECTOR = 1e-4
_CALIBRATE_AGAIN = 0.1  # share of chunks that are new since the weight was calibrated
_MEASURED = "pseudo-queries of this index"
_WEIGHT_KEYS = ("dense_weight", "dense_weight_source")


def build_index(
    corpus: Corpus,
    *,
    encoder: Encoder,
    output: Path,
    factory: str | None = None,
    dense_weight: float | None = None,
    rebuild: bool = False,
    shard_chunks: int = SHARD_CHUNKS,
    engine: Engine | None = None,
    max_memory_bytes: int | None = None,
) -> BuildReport:
    """Indexes a corpus, or brings an existing index of it up to date.

    Only new and changed documents are encoded; those no longer in the corpus disappear. A killed run is continued.

    Args:
        corpus: what to index.
        encoder: makes the vectors; one that asks for an unfitted transform is fitted on the corpus first.
        output: the index folder.
        factory: a FAISS factory string; chosen by size when None.
        dense_weight: the encoder's share in hybrid search, 0..1; calibrated on pseudo-queries when None.
        rebuild: encode everything again, also with another encoder than the existing index has.
        shard_chunks: chunks per shard, about; bounds the memory in use.
        engine: where shards are encoded; in this process when None.
        max_memory_bytes: of the process; what does not fit is sorted on disk. Half of what is free when None.

    Raises:
        EngineError: worker processes cannot be started, or died; finished shards are kept.
        MismatchError: the existing index was built with another encoder and `rebuild` is not set.
        ConfigError, CorpusError, StorageError: see their messages; an existing index stays as it was.
    """
    output = output.resolve()
    with folder_lock(output):
        recover_folder(output)
        return _Build(
            corpus,
            encoder,
            output,
            factory,
            dense_weight,
            rebuild,
            shard_chunks,
            engine or ThisProcess(),
            max_memory_bytes,
        ).run()


def rebuild_vectors(folder: Path, *, factory: str, max_memory_bytes: int | None = None) -> BuildReport:
    """Builds the FAISS part again from the stored vectors, without encoding.

    Args:
        folder: the index folder.
        factory: a FAISS factory string.
        max_memory_bytes: of the process; half of what is free when None.

    Raises:
        IndexFormatError: `folder` is not an index, or a shard is damaged.
        ConfigError: FAISS cannot build that factory.
    """
    folder = folder.resolve()
    with folder_lock(folder):
        manifest = read_manifest(folder, kind=KIND, error=IndexFormatError)
        store = Store(folder)
        report = BuildReport(documents=manifest["documents"], chunks=manifest["chunks"], factory=factory)
        _build_vectors(folder, store, manifest["dim"], report, max_memory_bytes)
        facts = {key: value for key, value in manifest.items() if key not in ("kind", "format_version")}
        facts |= {"factory": factory, "factory_by_size": False, "recall_at_10": report.recall_at_10}
        write_manifest(folder, kind=KIND, content=facts)
        return report


class _Build:
    """One run of `build_index`."""

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        output: Path,
        factory: str | None,
        dense_weight: float | None,
        rebuild: bool,
        shard_chunks: int,
        engine: Engine,
        max_memory_bytes: int | None,
    ) -> None:
        if dense_weight is not None and not 0 <= dense_weight <= 1:
            raise ConfigError(f"dense_weight is {dense_weight}; it must be between 0 and 1")
        self.dense_weight = dense_weight
        self.earlier_weight: dict[str, Any] = {}
        self.corpus, self.output, self.factory, self.shard_chunks = corpus, output, factory, shard_chunks
        self.staging = output.with_name(f".{output.name}.partial")
        self.engine, self.num_shards = engine, 0
        self.max_memory_bytes = max_memory_bytes
        self.report = BuildReport()
        self._clock = Clock(self.report)
        self.earlier: Store | None = None
        self.encoder_name = encoder.name
        _refuse_foreign(output)
        if not rebuild and output.is_dir() and any(output.iterdir()):
            manifest = self._check_earlier(encoder)
            self.earlier, self.encoder_name = Store(output), manifest["encoder"]
            self.earlier_weight = {key: manifest[key] for key in _WEIGHT_KEYS if key in manifest}
            # a factory that somebody chose stays; one chosen by size is chosen anew
            self.factory = factory or (None if manifest["factory_by_size"] else manifest["factory"])
        self.encoder = self._fitted(encoder)
        self.corpus_digest = CorpusDigest()

    def run(self) -> BuildReport:
        started = time.perf_counter()
        store = self._write_shards()
        require_folder(self.staging / ENCODER_NAME)
        report = self.report
        if not report.chunks:
            raise CorpusError(f"{self.corpus.path}: every document is empty; there is nothing to index")
        report.factory = self.factory or vectors.choose_factory(report.chunks)
        with self._clock("index"), progress("vector index"), storage_errors(self.staging / CHUNKS_NAME):
            _write_chunk_table(self.staging / CHUNKS_NAME, store, count=report.chunks)
            _build_vectors(self.staging, store, self.encoder.dim, report, self.max_memory_bytes)
        with self._clock("bm25"), progress("BM25"):
            texts = (document.content for document in store.documents())
            budget = memory_budget(self.max_memory_bytes)
            LexicalIndex.write(texts, self.staging / LEXICAL_NAME, memory_bytes=budget)
        with self._clock("calibrate"), progress("calibrating"):
            weight = self._weight(store.documents())
        light = {"queries_without_torch": _same_without_torch(self.staging / ENCODER_NAME, store)}
        write_manifest(self.staging, kind=KIND, content=self._facts() | weight | light)
        replace_folder(self.staging, self.output)
        with storage_errors(self.output):
            (self.output / _PLAN_NAME).unlink()
        report.wall_seconds = time.perf_counter() - started
        return report

    def _weight(self, documents: Iterator[Document]) -> dict[str, Any]:
        """The encoder's share in hybrid search: given, kept while little has changed, or calibrated now."""
        if self.dense_weight is not None:
            return {"dense_weight": self.dense_weight, "dense_weight_source": "given"}
        given = self.earlier_weight.get("dense_weight_source") == "given"
        # one that was measured in another way, by an earlier version, is not comparable
        measured = str(self.earlier_weight.get("dense_weight_source")).endswith(_MEASURED)
        little_is_new = self.report.encoded + self.report.resumed <= _CALIBRATE_AGAIN * self.report.chunks
        if given or (measured and little_is_new):
            return self.earlier_weight
        index = vectors.VectorIndex.read(self.staging / VECTORS_NAME)
        owners = np.load(self.staging / CHUNKS_NAME, mmap_mode="r")[:, 0]
        found = calibrate(
            documents,
            encode=partial(self.encoder.encode, normalize_embeddings=True),
            windows=self._cut,
            dense=lambda queries, k: index.search_documents(queries, k, owners=owners),
            lexical=LexicalIndex.open(self.staging / LEXICAL_NAME),
            tuned="tuned_from" in self.encoder.checkpoint.manifest,
        )
        self.report.calibration = found
        source = f"{found.queries} {_MEASURED}" if found.queries else "default"
        return {"dense_weight": found.dense_weight, "dense_weight_source": source}

    def _cut(self, text: str) -> list[str]:
        pieces = chunks_of(Document("", "", text), encoder=self.encoder)
        return [text[piece.start : piece.end] for piece in pieces]

    def _facts(self) -> dict[str, Any]:
        report, counts = self.report, self.corpus.counts
        return {
            "corpus": self.corpus.name,
            "corpus_path": str(resolved(self.corpus.path)),
            "corpus_sha256": self.corpus_digest.hexdigest(),
            "documents": report.documents,
            "chunks": report.chunks,
            "empty_documents": report.empty_documents,
            "duplicate_texts": counts.duplicate_texts,
            "split_documents": report.split_documents,
            "skipped_files": dict(counts.skipped_files),
            "encoder": self.encoder_name,
            "encoder_sha256": self.encoder.fingerprint,
            "encoder_base_sha256": self.encoder.base_fingerprint,
            "dim": self.encoder.dim,
            "metric": "inner product of unit vectors",
            "factory": report.factory,
            "factory_by_size": self.factory is None,
            "recall_at_10": report.recall_at_10,
            "bm25": {"k1": K1, "b": B, "stemmer": "snowball english"},
        }

    # --- encoder and earlier index -----------------------------------------------------------------------------------

    def _check_earlier(self, encoder: Encoder) -> dict[str, Any]:
        manifest = read_manifest(self.output, kind=KIND, error=IndexFormatError)
        # a corpus that was moved is still the same one; another folder of the same name is not
        if manifest["corpus_path"] != str(resolved(self.corpus.path)) and locate(manifest["corpus_path"]).exists():
            raise MismatchError(
                f"{self.output}: holds the corpus {manifest['corpus_path']}, not {resolved(self.corpus.path)}; "
                "choose another --output, or add --rebuild to replace it"
            )
        if not _same_encoder(manifest, encoder):
            raise MismatchError(
                f"{self.output}: built with encoder '{manifest['encoder']}', which is not the given '{encoder.name}' "
                "(or has other encoder settings); add --rebuild to encode everything again, or choose another --output"
            )
        return manifest

    def _fitted(self, encoder: Encoder) -> Encoder:
        """The encoder with its transform: from the earlier index, from a killed run, or fitted on the corpus now."""
        saved = self.staging / ENCODER_NAME
        plan = {
            "encoder": encoder.base_fingerprint,
            "encoder_fitted": encoder.fingerprint if encoder.fitted else None,
            "shard_chunks": self.shard_chunks,
            "earlier": self.earlier is not None,
            "corpus": str(resolved(self.corpus.path)),
        }
        if self._plan() != plan:
            with storage_errors(self.staging):
                if self.staging.exists():
                    shutil.rmtree(self.staging)
            if self.earlier is not None:
                encoder = self._reload(self.output / ENCODER_NAME, encoder)
            elif not encoder.fitted:
                with self._clock("fit"):
                    encoder = encoder.fit_tokens(self._all_token_ids(encoder))
            encoder.save(saved)
            write_json(self.staging / _PLAN_NAME, plan)
            return encoder
        return self._reload(saved, encoder)

    def _reload(self, path: Path, encoder: Encoder) -> Encoder:
        """The given encoder with the stored one's settings and transform."""
        device = encoder.model.device
        stored = Encoder.load(path, device=str(device))
        return Encoder(encoder.checkpoint, config=stored.config, transform=stored.transform, dtype=encoder.dtype)

    def _plan(self) -> Any:
        path = self.staging / _PLAN_NAME
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError:
            return None

    # --- shards ------------------------------------------------------------------------------------------------------

    def _write_shards(self) -> Store:
        report = self.report
        with progress("embedding") as advance:
            site = Site(
                self.staging,
                self.staging / ENCODER_NAME,
                self.encoder.dtype,
                self.output if self.earlier else None,
            )

            def show(steps: int = 0) -> None:
                advance(steps, note=f"{report.documents:,} documents read, {report.chunks:,} chunks done")

            for outcome in self.engine.run(self._unfinished(show), site=site, encoder=self.encoder):
                self._add(outcome)
                show(outcome.chunks)
        drop_shards_from(self.staging, self.num_shards)
        return Store(self.staging)

    def _unfinished(self, show: Callable[[], None]) -> Iterator[Work]:
        """The shards of the corpus that an interrupted run did not finish; `show` is called for each."""
        earlier = EarlierPlaces(self.earlier)
        documents = self.corpus.documents()
        seen = 0
        for work in plan(
            documents, earlier=earlier, shard_chunks=self.shard_chunks, window_tokens=self.encoder.max_seq_length
        ):
            self.num_shards = work.number + 1
            self.report.documents += len(work.documents)
            seen += sum(document.doc_id in earlier for document in work.documents)
            for document, digest in zip(work.documents, work.hashes, strict=True):
                self.corpus_digest.add(document.doc_id, digest)
            show()
            outcome = finished(self.staging, work)
            if outcome is None:
                yield work
            else:
                self._add(outcome)
        self.report.removed = len(earlier) - seen

    def _add(self, outcome: Outcome) -> None:
        report = self.report
        report.chunks += outcome.chunks
        report.tokens += outcome.tokens
        report.empty_documents += outcome.empty_documents
        report.split_documents += outcome.split_documents
        report.encoded += outcome.encoded
        report.reused += outcome.reused
        report.resumed += outcome.resumed
        for stage, seconds in outcome.seconds.items():
            self._clock.add(stage, seconds)

    def _all_token_ids(self, encoder: Encoder) -> Iterator[list[int]]:
        for document in self.corpus.documents():
            for chunk in chunks_of(document, encoder=encoder):
                yield chunk.token_ids


def _write_chunk_table(path: Path, store: Store, *, count: int) -> None:
    with array_writer(path, dtype=np.int64, shape=(count, 3)) as append:
        for part in store.chunk_table():
            append(part)


def _build_vectors(folder: Path, store: Store, dim: int, report: BuildReport, max_memory_bytes: int | None) -> None:
    path = folder / VECTORS_NAME
    count = report.chunks
    vectors.build(
        path,
        shards=store.vector_shards,
        count=count,
        dim=dim,
        factory=report.factory,
        memory_bytes=memory_budget(max_memory_bytes),
    )
    exact = report.factory == vectors.EXACT
    report.recall_at_10 = 1.0 if exact else vectors.recall(path, shards=store.vector_shards, count=count)


def _same_without_torch(saved: Path, store: Store) -> bool:
    """Whether queries can be encoded without torch: the beginnings of some documents get the same vectors."""
    exact = Encoder.load(saved, device="cpu")  # GPUs may round products
    if not QueryEncoder.supports(exact.checkpoint.config.model.type):
        return False
    texts = [document.content[:_PROBE_CHARACTERS] for document in islice(store.documents(), _PROBES)]
    light = QueryEncoder(saved)
    probes = [ids[: light.max_seq_length] for ids in light.tokenizer.encode_batch(texts)]
    expected = exact.encode_tokens(probes, normalize_embeddings=True)
    return bool(np.abs(light.encode_tokens(probes) - expected).max() <= _SAME_VECTOR)


def _same_encoder(manifest: dict[str, Any], encoder: Encoder) -> bool:
    if encoder.base_fingerprint != manifest["encoder_base_sha256"]:
        return False
    return not encoder.fitted or encoder.transform is None or encoder.fingerprint == manifest["encoder_sha256"]


def _refuse_foreign(output: Path) -> None:
    """The folder will be replaced: it must be an index (a damaged one will do), or empty."""
    ours = any((output / name).exists() for name in (VECTORS_NAME, ENCODER_NAME, CHUNKS_NAME))
    if output.is_dir() and any(output.iterdir()) and not ours:
        raise IndexFormatError(f"{output}: not an index, and not empty; choose another --output")


def check_encoder(manifest: dict[str, Any], encoder: Encoder, *, folder: Path) -> None:
    """Raises MismatchError unless the index was built with this encoder."""
    if not _same_encoder(manifest, encoder):
        raise MismatchError(
            f"{folder}: built with encoder '{manifest['encoder']}', not with '{encoder.name}' or its present settings; "
            f"build it again with `lmr embed CORPUS --encoder {encoder.checkpoint.path} --output {folder} --rebuild`"
        )
