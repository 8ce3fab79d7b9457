"""A Milvus collection as an index: what `lm_retrieval.search` needs of a place that holds vectors, words and texts.

The key of a document is its id. BM25 runs in the server where it can; otherwise it is that of the index folder which
was loaded. Hybrid search asks for both rankings and joins them as everywhere here: the share of the encoder that an
index carries was calibrated for that sum, and Milvus' own rankers compute another one.

Shapes: Q queries, N chunks, K hits, D dimensions.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import read_manifest
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import CheckpointError, IndexFormatError, LmRetrievalError, MismatchError
from lm_retrieval.records import Document, Span
from lm_retrieval.scale.milvus_client import CALL_SECONDS, Address, Connection, milvus_errors, parse_address
from lm_retrieval.scale.milvus_collection import Collection, collections_of, search_parameters
from lm_retrieval.scale.milvus_rows import EMPTY, document_key, head_of, join_document, keys_of

if TYPE_CHECKING:
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.index.lexical import LexicalIndex

logger = logging.getLogger(__name__)

Ranking = dict[Hashable, float]
_MOST = 16_384  # hits that a server gives at once
_MOST_HEADS = 100_000
_AHEAD = 100
_MOST_SHOWN = 5_000
_TEXT_FIELDS = ["pk", "doc_id", "chunk_id", "start", "end", "offset", "title_length", "text"]


def open_collection(text: str) -> "MilvusBackend":
    """Opens `URI#COLLECTION`; without a name the only collection that `lmr` made there.

    Raises:
        IndexFormatError: there is none, or more than one; or it is something else's, damaged or not complete.
        StorageError: Milvus does not answer, or the file is in use.
    """
    address = parse_address(text)
    if address.file is not None and not address.file.exists():
        raise IndexFormatError(f"{address}: no such file; make it with `lmr index INDEX --backend milvus`")
    connection = Connection(address)
    try:
        name = address.collection or _only(connection)
        collection = Collection(connection, name)
        return MilvusBackend(collection, _complete(collection))
    except BaseException:
        connection.close()
        raise


def _only(connection: Connection) -> str:
    names = collections_of(connection)
    where = connection.address
    if not names:
        raise IndexFormatError(f"{where}: no collection of lmr here; load one with `lmr index INDEX --backend milvus`")
    if len(names) > 1:
        raise IndexFormatError(f"{where}: which collection? add #NAME; there are: {', '.join(names)}")
    return names[0]


def _complete(collection: Collection) -> dict[str, Any]:
    if not collection.exists():
        known = ", ".join(collections_of(collection.connection))
        hint = f"there are: {known}" if known else "load one with `lmr index INDEX --backend milvus`"
        raise IndexFormatError(f"{collection.address}: no such collection; {hint}")
    manifest = collection.manifest()
    if manifest is None:
        raise IndexFormatError(f"{collection.address}: this collection was not made by lmr; nothing can be searched")
    if manifest.get("state") != "complete":
        raise IndexFormatError(
            f"{collection.address}: not completely loaded; run the same `lmr index` again, it goes on where it stopped"
        )
    return manifest


class MilvusBackend:
    """An opened collection.

    Attributes:
        name: how messages call it.
        manifest: what the collection says about itself, as the manifest of an index folder.
        collection: the collection.
    """

    def __init__(self, collection: Collection, manifest: dict[str, Any]) -> None:
        self.collection, self.manifest = collection, manifest
        self.address: Address = collection.address
        self.name = str(self.address)
        self._client = collection.client
        self._index_folder = Path(manifest["index_folder"])
        self._heads: dict[str, str] = {}  # of documents that were found: what the keys of their rows begin with
        self._keys: list[str] = []  # of the chunks that were given out, by number
        self._numbers: dict[str, int] = {}
        self._shown: dict[str, Document] = {}  # documents of such chunks, by what their keys begin with
        collection.load()
        found, expected = collection.count(), manifest["rows"]
        if found != expected:
            raise IndexFormatError(
                f"{self.name}: {found} rows, {expected} were loaded: damaged, or changed by something else; "
                "run the same `lmr index` again"
            )
        logger.info("%s: %s; BM25 runs %s", self.name, collection.connection.server, self.lexical_place)

    @property
    def kind(self) -> str:
        """The server and its version."""
        return self.collection.connection.server

    @property
    def lexical_place(self) -> str:
        """Where BM25 runs, in words."""
        return "in the server" if self._words_in_server else f"here, from {self._index_folder}"

    def close(self) -> None:
        """Ends the connection."""
        self.collection.connection.close()

    # --- encoder -----------------------------------------------------------------------------------------------------

    @cached_property
    def encoder_folder(self) -> Path | None:
        """The copy in the index folder that was loaded, if it still is the one that made these vectors."""
        try:
            index = read_manifest(self._index_folder, kind="index", error=IndexFormatError)
        except LmRetrievalError:
            return None
        folder = self._index_folder / "encoder"
        return folder if index["encoder_sha256"] == self.manifest["encoder_sha256"] and folder.is_dir() else None

    def load_encoder(self) -> "Encoder":
        """That copy, or the checkpoint of the same name, if it is the same.

        Raises:
            MismatchError: neither is here.
        """
        from lm_retrieval.checkpoint import find_checkpoint
        from lm_retrieval.encoding.encoder import Encoder

        if self.encoder_folder is not None:
            return Encoder.load(self.encoder_folder)
        name = self.manifest["encoder"]
        try:
            encoder = Encoder.load(find_checkpoint(name))
        except CheckpointError as error:
            raise MismatchError(f"{self._made_by()}, which is not here; pass --encoder PATH") from error
        self.check_encoder(encoder)
        return encoder

    def check_encoder(self, encoder: "Encoder") -> None:
        """Raises MismatchError unless the vectors were made by this encoder."""
        same = encoder.fingerprint == self.manifest["encoder_sha256"]
        fitted_here = not encoder.fitted and self.encoder_folder is not None
        if not same and not (fitted_here and encoder.base_fingerprint == self.manifest["encoder_base_sha256"]):
            raise MismatchError(
                f"{self._made_by()}, not by '{encoder.name}' or its present settings; pass that one as --encoder PATH, "
                "or load the collection again with --rebuild"
            )

    def _made_by(self) -> str:
        return f"{self.name}: its vectors were made by encoder '{self.manifest['encoder']}'"

    # --- ranking -----------------------------------------------------------------------------------------------------

    def dense(self, vectors: NDArray[np.float32], k: int) -> list[Ranking]:
        """Documents by their best chunk."""
        index_type, count = self.manifest["index_type"], self.manifest["chunks"]

        def search(places: list[int], depth: int) -> Any:
            return self._search(
                [np.ascontiguousarray(vectors[place], np.float32) for place in places],
                "vector",
                depth,
                search_parameters(index_type, count=count, depth=depth),
            )

        return self._by_document(search, len(vectors), k)

    def lexical(self, query: str, k: int) -> Ranking:
        """BM25 of chunks in the server, a document as its best; or of documents here.

        Raises:
            IndexFormatError: it runs here, and the index folder is gone or has changed since it was loaded.
        """
        if not self._words_in_server:
            rows, scores = self._words.search(query, k)
            return dict(zip((self._local_ids[row] for row in rows.tolist()), scores.tolist(), strict=True))
        terms = " ".join(self._analyzer.terms(query))
        if not terms:
            return {}
        found = self._by_document(lambda _, depth: self._search([terms], "bm25", depth, {}), 1, k)[0]
        # Milvus Lite gives distances, which are the negative of scores
        return dict(sorted(((key, abs(score)) for key, score in found.items()), key=lambda item: -item[1]))

    def _search(self, data: list[Any], name: str, depth: int, parameters: dict[str, int]) -> Any:
        with milvus_errors(self.address):
            return self._client.search(
                self.collection.name,
                data=data,
                anns_field=name,
                limit=depth,
                output_fields=["pk", "doc_id", "chunk_id"],
                search_params={"params": parameters},
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )

    def _by_document(self, search: Callable[[list[int], int], Any], count: int, k: int) -> list[Ranking]:
        """Asks for more chunks until `k` different documents are found or there are no more."""
        depth = min(_MOST, 2 * k)
        results: list[Ranking] = [{} for _ in range(count)]
        unfinished = list(range(count))
        while unfinished:
            found = search(unfinished, depth)
            again = []
            for place, hits in zip(unfinished, found, strict=True):
                best = self._best(hits)
                results[place] = dict(list(best.items())[:k])
                if len(best) < k and len(hits) == depth < _MOST:
                    again.append(place)
            unfinished, depth = again, min(_MOST, 4 * depth)
        return results

    def _best(self, hits: Any) -> Ranking:
        best: Ranking = {}
        if len(self._heads) > _MOST_HEADS:
            self._heads.clear()
        for hit in hits:
            row = hit["entity"]
            if row["chunk_id"] != EMPTY and row["doc_id"] not in best:
                best[row["doc_id"]] = float(hit["distance"])
                self._heads[row["doc_id"]] = head_of(row["pk"])
        return best

    # --- words here --------------------------------------------------------------------------------------------------

    @property
    def _words_in_server(self) -> bool:
        return bool(self.manifest["full_text"] == "server")

    @cached_property
    def _analyzer(self) -> Analyzer:
        return Analyzer()

    @cached_property
    def _words(self) -> "LexicalIndex":
        from lm_retrieval.index.lexical import LexicalIndex

        try:
            index = read_manifest(self._index_folder, kind="index", error=IndexFormatError)
        except LmRetrievalError as error:
            raise IndexFormatError(
                f"{self.name}: BM25 runs {self.lexical_place}, and that folder is gone; use --mode dense"
            ) from error
        if index["corpus_sha256"] != self.manifest["corpus_sha256"]:
            raise IndexFormatError(
                f"{self.name}: BM25 runs {self.lexical_place}, and that has changed; "
                "run `lmr index` again, or use --mode dense"
            )
        return LexicalIndex.open(self._index_folder / "lexical")

    @cached_property
    def _local_ids(self) -> list[str]:
        from lm_retrieval.index.store import Store

        return Store(self._index_folder).doc_ids()

    # --- documents ---------------------------------------------------------------------------------------------------

    def find(self, doc_id: str) -> str | None:
        """The id itself, where there is such a document."""
        return doc_id if self._rows([doc_id])[doc_id] else None

    def doc_ids(self, keys: Sequence[Hashable]) -> list[str]:
        """Keys are ids."""
        return list(cast(Sequence[str], keys))

    def documents(self, keys: Sequence[Hashable]) -> list[tuple[Document, list[Span]]]:
        """Documents put together from their rows, and where their chunks are."""
        doc_ids = self.doc_ids(keys)
        found = self._rows(doc_ids)
        missing = next((doc_id for doc_id in doc_ids if not found[doc_id]), None)
        if missing is not None:
            raise IndexFormatError(f"{self.name}: document '{missing}' has changed just now; ask again")
        return [join_document(found[doc_id]) for doc_id in doc_ids]

    def _rows(self, doc_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """All rows of each document; none where it is not there.

        By their keys, which take no search, where the document was just found.
        """
        heads = [self._heads[doc_id] for doc_id in doc_ids if doc_id in self._heads]
        keys = [key for head in heads for key in keys_of(head)]
        found: dict[str, list[dict[str, Any]]] = {}
        if keys:
            found = _by_id(_whole(self._query(_among("pk", keys), _TEXT_FIELDS)))
        others = [document_key(doc_id) for doc_id in doc_ids if doc_id not in found]
        if others:
            found |= _by_id(_whole(self._query(_among("document", others), _TEXT_FIELDS)))
        return {doc_id: found.get(doc_id, []) for doc_id in doc_ids}

    def _query(self, condition: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        with milvus_errors(self.address):
            return list(
                self._client.query(
                    self.collection.name,
                    filter=condition,
                    output_fields=fields,
                    consistency_level="Strong",
                    timeout=CALL_SECONDS,
                    **options,
                )
            )

    # --- chunks by number --------------------------------------------------------------------------------------------

    def sample(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At most so many chunks: their numbers and (N, D) vectors."""
        count = min(count, _MOST)
        rows = self.manifest["rows"]
        condition = f"chunk_id != {EMPTY}"
        if rows > count:
            # keys begin with a hash: those below a bound are a sample, wherever the server keeps them
            bound = min((1 << 32) - 1, int((1 << 32) * 1.2 * count / rows))
            condition += f' and pk < "{bound:08x}"'
        found = self._query(condition, ["pk", "vector"], limit=count)
        return self._numbered([row["pk"] for row in found], [row["vector"] for row in found])

    def near_chunks(self, vector: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` chunks nearest to a vector (D,), best first: their numbers and (K, D) vectors."""
        parameters = search_parameters(self.manifest["index_type"], count=self.manifest["chunks"], depth=k)
        hits = self._search([np.ascontiguousarray(vector, np.float32)], "vector", k, parameters)[0]
        keys = [hit["entity"]["pk"] for hit in hits if hit["entity"]["chunk_id"] != EMPTY]
        vectors = {row["pk"]: row["vector"] for row in self._query(_among("pk", keys), ["pk", "vector"])}
        return self._numbered(keys, [vectors[key] for key in keys])

    def chunk_document(self, number: int) -> Document:
        """The document that a chunk is of, by a number that was given out.

        Raises:
            IndexFormatError: the document has changed since.
        """
        head = head_of(self._keys[number])
        if head not in self._shown:
            # those of the next numbers will be asked for too
            heads = dict.fromkeys(head_of(key) for key in self._keys[number : number + _AHEAD])
            keys = [key for one in heads for key in keys_of(one)]
            if len(self._shown) > _MOST_SHOWN:
                self._shown.clear()
            for one, rows in _whole(self._query(_among("pk", keys), _TEXT_FIELDS)).items():
                self._shown[one] = join_document(rows)[0]
        if head not in self._shown:
            raise IndexFormatError(f"{self.name}: a document has changed just now; ask again")
        return self._shown[head]

    def _numbered(self, keys: list[str], vectors: list[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        for key in keys:
            if key not in self._numbers:
                self._numbers[key] = len(self._keys)
                self._keys.append(key)
        numbers = [self._numbers[key] for key in keys]
        shape = (len(keys), self.manifest["dim"])
        return np.array(numbers, np.int64), np.array(vectors, np.float32).reshape(shape)


def _among(name: str, values: Sequence[str]) -> str:
    """A filter; the values are made by us and need no escapes."""
    listed = ", ".join(f'"{value}"' for value in values)
    return f"{name} in [{listed}]"


def _whole(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by what their keys begin with, where all of a document are there.

    While a collection is brought up to date, the old and the new rows of a document can be there beside each other.
    """
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[head_of(row["pk"])].append(row)
    return {head: found for head, found in groups.items() if len(found) == len(keys_of(head))}


def _by_id(groups: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {str(rows[0]["doc_id"]): rows for rows in groups.values()}
