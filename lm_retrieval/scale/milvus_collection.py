"""Collections that `lmr` makes: their fields, indexes, and the manifest in their properties."""

import json
import math
from typing import Any, Literal

from lm_retrieval.errors import ConfigError, IndexFormatError, LmRetrievalError
from lm_retrieval.index.lexical import K1, B
from lm_retrieval.scale.milvus_client import CALL_SECONDS, LOAD_SECONDS, Connection, as_dict, milvus_errors
from lm_retrieval.scale.milvus_rows import DOCUMENT_LENGTH, KEY_LENGTH, MAX_BYTES

FullText = Literal["auto", "server", "local"]
KIND = "milvus collection"
FORMAT_VERSION = 1
EXACT = "FLAT"
_EXACT_LIMIT = 200_000
_PROPERTY = "lm_retrieval"
# the words that are sent are terms already: all that is left to do is to split them
_ANALYZERS = ({"tokenizer": "whitespace"}, {"tokenizer": "standard"})


def choose_type(count: int) -> str:
    """Exact search up to 200,000 vectors, as in a folder; above, cells with a byte per dimension."""
    return EXACT if count <= _EXACT_LIMIT else "IVF_SQ8"


def build_parameters(index_type: str, count: int) -> dict[str, int]:
    """Parameters of an index of so many vectors; none for types that the server sets up itself."""
    if index_type.startswith("HNSW"):
        return {"M": 32, "efConstruction": 200}
    if index_type.startswith("IVF"):
        return {"nlist": max(1, min(65_536, 2 ** round(math.log2(4 * math.sqrt(max(1, count))))))}
    return {}


def search_parameters(index_type: str, *, count: int, depth: int) -> dict[str, int]:
    """Parameters of a search for the best `depth`: as many cells as FAISS visits here, a sixteenth."""
    if index_type.startswith("HNSW"):
        return {"ef": max(depth, 128)}
    if index_type.startswith("IVF"):
        cells = build_parameters(index_type, count)["nlist"]
        return {"nprobe": min(cells, max(8, cells // 16))}
    return {}


class Collection:
    """A collection by its name, on an open connection.

    Attributes:
        connection: how it is reached.
        name: of the collection.
        client: pymilvus's own.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name, self.client = connection, name, connection.client
        self.address = connection.address._replace(collection=name)

    def exists(self) -> bool:
        """Whether there is a collection of this name, whoever made it."""
        with milvus_errors(self.address):
            return bool(self.client.has_collection(self.name, timeout=CALL_SECONDS))

    def manifest(self) -> dict[str, Any] | None:
        """What was written with it; None for a collection that something else made.

        Raises:
            IndexFormatError: of a newer format, or damaged.
        """
        with milvus_errors(self.address):
            described = as_dict(self.client.describe_collection(self.name, timeout=CALL_SECONDS))
        found = as_dict(described.get("properties")).get(_PROPERTY)
        if found is None:
            return None
        try:
            manifest = dict(json.loads(found))
            version = manifest["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise IndexFormatError(f"{self.address}: damaged manifest; load it again with --rebuild") from error
        if version != FORMAT_VERSION:
            raise IndexFormatError(
                f"{self.address}: format version {version}, this program reads {FORMAT_VERSION}; "
                "install the version of lm_retrieval that wrote it, or load it again with --rebuild"
            )
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replaces the manifest."""
        with milvus_errors(self.address):
            self.client.alter_collection_properties(
                self.name, properties={_PROPERTY: _encoded(manifest)}, timeout=CALL_SECONDS
            )

    def create(self, manifest: dict[str, Any], *, full_text: FullText) -> str | None:
        """Makes the collection and its indexes; returns why the server does no full-text search, None where it does.

        Raises:
            ConfigError: `full_text` is `server` and the server cannot.
        """
        reason: str | None = "as asked for"
        for analyzer in _ANALYZERS if full_text != "local" else ():
            try:
                self._create(manifest, analyzer)
            except LmRetrievalError as error:
                reason = str(error)
                self.drop()
                continue
            if self._has_function():
                return None
            reason = "the server knows no functions"
            self.drop()
        if full_text == "server":
            raise ConfigError(f"{self.address}: {self.connection.server} offers no full-text search ({reason})")
        try:
            self._create(manifest, None)
        except LmRetrievalError:
            self.drop()
            raise
        return reason

    def drop(self) -> None:
        """Deletes it with everything in it."""
        with milvus_errors(self.address):
            if self.client.has_collection(self.name, timeout=CALL_SECONDS):
                self.client.drop_collection(self.name, timeout=CALL_SECONDS)

    def index_again(self, index_type: str, *, earlier: str, count: int) -> None:
        """Gives the vectors another index; where that cannot be, the earlier one stays.

        Raises:
            IndexFormatError: Milvus does not know such an index.
        """
        try:
            self._replace_index(index_type, count)
        except LmRetrievalError:
            self._replace_index(earlier, count)
            self.load()
            raise

    def _replace_index(self, index_type: str, count: int) -> None:
        with milvus_errors(self.address):
            self.client.release_collection(self.name, timeout=CALL_SECONDS)
            for name in self.client.list_indexes(self.name, field_name="vector", timeout=CALL_SECONDS):
                self.client.drop_index(self.name, name, timeout=CALL_SECONDS)
            self.client.create_index(self.name, self._vector_index(index_type, count), timeout=LOAD_SECONDS, sync=False)

    def flush(self) -> None:
        """Has what was sent written down."""
        with milvus_errors(self.address):
            self.client.flush(self.name, timeout=LOAD_SECONDS)

    def load(self) -> None:
        """Makes it searchable."""
        with milvus_errors(self.address):
            self.client.load_collection(self.name, timeout=LOAD_SECONDS)

    def count(self) -> int:
        """Rows in it."""
        with milvus_errors(self.address):
            found = self.client.query(
                self.name,
                filter="",
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
        return int(found[0]["count(*)"])

    def _create(self, manifest: dict[str, Any], analyzer: dict[str, str] | None) -> None:
        from pymilvus import DataType, Function, FunctionType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=KEY_LENGTH)
        schema.add_field("document", DataType.VARCHAR, max_length=DOCUMENT_LENGTH)
        for name in ("chunk_id", "start", "end", "offset", "title_length"):
            schema.add_field(name, DataType.INT64)
        schema.add_field("content_hash", DataType.VARCHAR, max_length=64)
        for name in ("doc_id", "title", "text"):
            schema.add_field(name, DataType.VARCHAR, max_length=MAX_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=manifest["dim"])
        indexes = self._vector_index(manifest["index_type"], manifest["chunks"])
        indexes.add_index("document", index_type="INVERTED")
        if analyzer is not None:
            schema.add_field(
                "words", DataType.VARCHAR, max_length=MAX_BYTES, enable_analyzer=True, analyzer_params=analyzer
            )
            schema.add_field("bm25", DataType.SPARSE_FLOAT_VECTOR)
            schema.add_function(
                Function(
                    name="bm25_of_words",
                    function_type=FunctionType.BM25,
                    input_field_names=["words"],
                    output_field_names=["bm25"],
                )
            )
            constants = {"bm25_k1": K1, "bm25_b": B}
            indexes.add_index("bm25", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params=constants)
        with milvus_errors(self.address):
            self.client.create_collection(
                self.name,
                schema=schema,
                properties={_PROPERTY: _encoded(manifest)},
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
            # without waiting: there is nothing in it yet, and loading waits
            self.client.create_index(self.name, indexes, timeout=CALL_SECONDS, sync=False)

    def _vector_index(self, index_type: str, count: int) -> Any:
        indexes = self.client.prepare_index_params()
        indexes.add_index("vector", index_type=index_type, metric_type="IP", params=build_parameters(index_type, count))
        return indexes

    def _has_function(self) -> bool:
        with milvus_errors(self.address):
            return bool(as_dict(self.client.describe_collection(self.name, timeout=CALL_SECONDS)).get("functions"))


def collections_of(connection: Connection) -> list[str]:
    """Names of the collections that `lmr` made there."""
    with milvus_errors(connection.address):
        names = connection.client.list_collections(timeout=CALL_SECONDS)
        described = {
            name: as_dict(connection.client.describe_collection(name, timeout=CALL_SECONDS)) for name in sorted(names)
        }
    return [name for name, facts in described.items() if _PROPERTY in as_dict(facts.get("properties"))]


def _encoded(manifest: dict[str, Any]) -> str:
    head = {"kind": KIND, "format_version": FORMAT_VERSION}
    return json.dumps(head | manifest)
