"""Schemas of `/search` and `/rerank`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from lm_retrieval.search import Fusion, Mode, Rerank
from lm_retrieval.server.schemas.base import ModelName, example

QueryText = Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"\S")]
IndexName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
_HIT = {
    "rank": 1,
    "score": 0.925,
    "id": "builtins.dict",
    "title": "class dict",
    "snippet": "dict() -> new empty dictionary …",
    "highlights": [[16, 26]],
    "passage": {"start": 0, "end": 412},
}


class SearchRequest(BaseModel):
    """A question, as of `lmr search`."""

    model_config = example({"query": "merge two dictionaries", "k": 3, "mode": "hybrid"})
    query: QueryText
    index: IndexName | None = Field(None, description="By default the first.")
    k: int = Field(10, ge=1)
    mode: Mode = Field("hybrid", description="dense: the encoder; bm25: words; hybrid: both.")
    fusion: Fusion = Field("weighted", description="How hybrid joins them: scores or ranks.")
    dense_weight: float | None = Field(None, ge=0, le=1, description="The encoder's share; by default the index's own.")
    rerank: Rerank = Field("none", description="lm: reorder by how probable the query is after each document.")


class Passage(BaseModel):
    """Where the best chunk is in the document: characters, the end not included."""

    model_config = example({"start": 0, "end": 412})
    start: int
    end: int


class HitAnswer(BaseModel):
    """A document found; `highlights` are ranges of the snippet that match words of the query."""

    model_config = example(_HIT)
    rank: int
    score: float
    id: str
    title: str
    snippet: str
    highlights: list[tuple[int, int]]
    passage: Passage


class SearchAnswer(BaseModel):
    """Hits, best first."""

    model_config = example({"query": "merge two dictionaries", "hits": [_HIT]})
    query: str
    hits: list[HitAnswer]


class RerankRequest(BaseModel):
    """Documents to order by how well they answer a query."""

    model_config = example(
        {"query": "merge two dictionaries", "documents": ["Sort a list.", "Update a dict."], "top_n": 1}
    )
    query: QueryText
    documents: list[str] = Field(min_length=1)
    model: ModelName | None = Field(None, description="By default the first that can.")
    top_n: int | None = Field(None, ge=1, description="Return so many; by default all.")
    method: Literal["dense", "lm"] = Field(
        "dense", description="dense: cosine similarity; lm: log-probability of the query after each document."
    )
    return_documents: bool = False


class Reranked(BaseModel):
    """A document by its place in the request; scores mean something only beside each other."""

    model_config = example({"index": 1, "relevance_score": 0.71, "document": None})
    index: int
    relevance_score: float
    document: str | None = None


class RerankAnswer(BaseModel):
    """Documents, best first."""

    model_config = example(
        {"model": "rnn", "results": [{"index": 1, "relevance_score": 0.71, "document": None}], "total_tokens": 11}
    )
    model: str
    results: list[Reranked]
    total_tokens: int
