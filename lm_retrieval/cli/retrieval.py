"""`lmr embed`, `lmr index`, `lmr search`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_retrieval.cli.options import (
    LOCATION,
    Command,
    corpus_options,
    devices_option,
    dtype_option,
    echo_json,
    format_option,
    max_memory_option,
)
from lm_retrieval.storage import Location

if TYPE_CHECKING:
    from lm_retrieval.index.engines import Engine
    from lm_retrieval.index.report import BuildReport
    from lm_retrieval.records import Hit


@click.command(cls=Command)
@click.argument("corpus", type=LOCATION)
@click.option(
    "--encoder",
    help="Checkpoint.  [default: that of the existing index, else lstm-base]",
)
@click.option("--output", type=LOCATION, help="Index folder.  [default: indexes/CORPUS]")
@click.option("--factory", help='FAISS index, for example "Flat", "HNSW32", "IVF256,PQ32".  [default: by size]')
@click.option(
    "--postprocess",
    type=click.Choice(["none", "center", "whiten"]),
    help="Override the checkpoint's encoder.postprocess.",
)
@click.option(
    "--dense-weight",
    type=click.FloatRange(0, 1),
    help="The encoder's share in hybrid search.  [default: calibrated on pseudo-queries from the corpus]",
)
@click.option("--rebuild", is_flag=True, help="Encode everything again, also with another encoder than before.")
@dtype_option("auto")
@devices_option
@max_memory_option
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to encode: on this machine, or on a Ray cluster that sees --output too.",
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster.  [default: RAY_ADDRESS, else one of this machine]")
@click.option("--workers", type=click.IntRange(min=1), help="Ray workers.  [default: as many as fit]")
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="GPUs of a Ray worker.  [default: 0]")
@corpus_options
def embed(
    corpus: Location,
    encoder: str | None,
    output: Location | None,
    factory: str | None,
    postprocess: Any,
    dense_weight: float | None,
    rebuild: bool,
    dtype: Any,
    devices: str,
    max_memory: int | None,
    engine: str,
    address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    encoding: str,
    text_column: str | None,
) -> None:
    """Index a folder or file of text: after it, `lmr search` works.

    Run it again after the text has changed: only what changed is encoded. A killed run goes on where it stopped.
    """
    from lm_retrieval.checkpoint import BASE_ENCODER, find_checkpoint, read_config
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.index.builder import build_index
    from lm_retrieval.runtime import local_devices
    from lm_retrieval.storage import open_output

    places = local_devices(devices)
    chosen = _engine(engine, places, address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    opened = open_corpus(corpus, encoding=encoding, text_column=text_column)
    target = open_output(output or Path("indexes") / opened.name)
    own = target.folder / "encoder"
    if encoder:
        folder = find_checkpoint(encoder)
    else:
        # an index that is brought up to date keeps its encoder
        folder = own if own.is_dir() and not rebuild else find_checkpoint(BASE_ENCODER)
    config = read_config(folder).encoder.model_copy(update={"postprocess": postprocess}) if postprocess else None
    try:
        report = build_index(
            opened,
            encoder=Encoder.load(folder, device=places[0], dtype=dtype, config=config),
            output=target.folder,
            factory=factory,
            dense_weight=dense_weight,
            rebuild=rebuild,
            engine=chosen,
            max_memory_bytes=max_memory,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted; what is finished is kept: the same command goes on there.") from None
    target.send()
    for note in opened.counts.warnings():
        click.echo(f"warning: {note}", err=True)
    _echo_report(target.location, report)


def _engine(name: str, devices: list[str], **cluster: Any) -> "Engine":
    """Where an index is encoded."""
    given = [f"--{key.replace('_', '-')}" for key, value in cluster.items() if value is not None]
    if name == "local":
        if given:
            raise click.UsageError(f"{', '.join(given)}: only with --engine ray")
        from lm_retrieval.index.engines import local_engine

        return local_engine(devices)
    from lm_retrieval.runtime import THREADS_VARIABLE, thread_count
    from lm_retrieval.scale.ray_data import RayEngine

    cluster["gpus_per_worker"] = cluster["gpus_per_worker"] or 0.0
    return RayEngine(**cluster, threads_per_worker=thread_count() if THREADS_VARIABLE in os.environ else 1)


@click.command(cls=Command)
@click.argument("name")
@click.option("--factory", help='FAISS index, for example "Flat", "HNSW32", "IVF256,PQ32".')
@max_memory_option
@click.option("--backend", type=click.Choice(["faiss", "milvus"]), default="faiss", show_default=True)
@click.option("--uri", help="Milvus: a file of Milvus Lite (NAME.db), or the URL of a server.")
@click.option("--collection", help="Milvus: name of the collection.  [default: that of the index]")
@click.option("--index-type", help="Milvus: FLAT, HNSW, IVF_FLAT, IVF_SQ8, AUTOINDEX, ….  [default: by size]")
@click.option(
    "--full-text",
    type=click.Choice(["auto", "server", "local"]),
    default="auto",
    show_default=True,
    help="Milvus: where BM25 runs; auto: in the server where it can.",
)
@click.option("--rebuild", is_flag=True, help="Milvus: delete the collection first.")
def index(
    name: str,
    factory: str | None,
    max_memory: int | None,
    backend: str,
    uri: str | None,
    collection: str | None,
    index_type: str | None,
    full_text: Any,
    rebuild: bool,
) -> None:
    """Rebuild the FAISS part of an index from its stored vectors, or load the index into Milvus.

    Nothing is encoded again. Loading sends only what is new, also after an interruption; MILVUS_TOKEN is sent along.

    \b
    Example:
      lmr index notes --factory HNSW32
      lmr index notes --backend milvus --uri notes.db
      lmr search "what did we decide" --index milvus+notes.db#notes
    """
    from lm_retrieval.search import find_index
    from lm_retrieval.storage import is_uri, locate, open_output

    if backend == "milvus":
        if uri is None or factory is not None:
            raise click.UsageError("--backend milvus takes --uri, and --index-type instead of --factory")
        _load_milvus(find_index(name), uri, collection, index_type=index_type, full_text=full_text, rebuild=rebuild)
        return
    if factory is None or uri or collection or index_type:
        raise click.UsageError("--factory is needed; --uri, --collection and --index-type are for --backend milvus")
    from lm_retrieval.index.builder import rebuild_vectors

    target = open_output(locate(name) if is_uri(name) else find_index(name))
    report = rebuild_vectors(target.folder, factory=factory, max_memory_bytes=max_memory)
    target.send()
    size = (target.folder / "vectors.faiss").stat().st_size
    click.echo(
        f"{target.location}: {factory}, {report.chunks:,} vectors, {size / 1e6:.1f} MB, "
        f"recall@10 {report.recall_at_10:.3f}"
    )


def _load_milvus(folder: Path, uri: str, collection: str | None, **options: Any) -> None:
    from lm_retrieval.scale.milvus_client import default_collection, parse_address
    from lm_retrieval.scale.milvus_collection import EXACT
    from lm_retrieval.scale.milvus_load import load_index

    if "#" in uri:
        raise click.UsageError("--uri without '#'; the name of the collection is --collection")
    address = parse_address(f"{uri}#{collection or default_collection(folder.resolve().name)}")
    report = load_index(folder, address=address, **options)
    recall = "" if report.index_type == EXACT else f" (recall@10 {report.recall_at_10:.3f})"
    click.echo(
        f"{report.address}: {report.documents:,} documents, {report.chunks:,} chunks, "
        f"index {report.index_type}{recall}, {report.server}"
    )
    parts = [f"{report.sent:,} rows sent"]
    if report.kept:
        parts.append(f"{report.kept:,} were there")
    if report.deleted:
        parts.append(f"{report.deleted:,} deleted")
    click.echo(f"{', '.join(parts)}, {report.seconds['all']:.1f} s")
    if report.full_text == "server":
        click.echo("BM25: in the server, which hybrid search asks for both rankings")
    else:
        why = f" ({report.why_local})" if report.why_local else ""
        click.echo(f"BM25: here, from {folder}{why}")


@click.command(cls=Command)
@click.argument("query")
@click.option(
    "--index", "name", help="Index to search: a folder, or milvus+URI#COLLECTION.  [default: the one built last]"
)
@click.option("-k", default=10, show_default=True, help="Number of hits.")
@click.option(
    "--mode", type=click.Choice(["hybrid", "dense", "bm25"]), default="hybrid", show_default=True, help="How to rank."
)
@click.option(
    "--fusion",
    type=click.Choice(["weighted", "rrf"]),
    default="weighted",
    show_default=True,
    help="How hybrid joins both.",
)
@click.option(
    "--rerank",
    type=click.Choice(["none", "lm"]),
    default="none",
    show_default=True,
    help="lm: reorder the first 100 by how probable the language model finds the query after each.",
)
@click.option(
    "--dense-weight",
    type=click.FloatRange(0, 1),
    help="The encoder's share in a weighted sum.  [default: as stored with the index]",
)
@click.option("--encoder", help="Checkpoint for the queries; the index must have been built with it.")
@format_option
def search(
    query: str,
    name: str | None,
    k: int,
    mode: Any,
    fusion: Any,
    rerank: Any,
    dense_weight: float | None,
    encoder: str | None,
    output_format: str,
) -> None:
    """Search an index. QUERY - reads one query per line from standard input.

    \b
    Example:
      lmr search "merge two dictionaries"
      lmr search "merge two dictionaries" -k 3 --format json
      cat questions.txt | lmr search - --mode bm25
    """
    from lm_retrieval.search import open_index

    given = None
    if encoder is not None:
        from lm_retrieval.checkpoint import find_checkpoint
        from lm_retrieval.encoding.encoder import Encoder

        given = Encoder.load(find_checkpoint(encoder))
    searcher = open_index(name, encoder=given)
    queries = [line.strip() for line in sys.stdin if line.strip()] if query == "-" else [query]
    options = {"mode": mode, "fusion": fusion, "rerank": rerank, "dense_weight": dense_weight}
    try:
        answers = [(text, searcher.search(text, k=k, **options)) for text in queries]
    finally:
        searcher.close()
    if output_format == "json":
        found = [{"query": text, "hits": [hit.to_dict() for hit in hits]} for text, hits in answers]
        echo_json(found if query == "-" else found[0])
        return
    for text, hits in answers:
        if query == "-":
            click.echo(f"> {text}\n")
        for hit in hits:
            _echo_hit(hit)
        if not hits:
            click.echo("no document matches; try --mode dense or other words")


def _echo_report(folder: Location, report: "BuildReport") -> None:
    click.echo(f"{folder}: {report.documents:,} documents, {report.chunks:,} chunks, index {report.factory}")
    parts = [f"{report.encoded:,} chunks encoded"]
    if report.reused:
        parts.append(f"{report.reused:,} unchanged")
    if report.resumed:
        parts.append(f"{report.resumed:,} from the interrupted run")
    if report.removed:
        parts.append(f"{report.removed:,} documents removed")
    click.echo(", ".join(parts))
    total = report.wall_seconds or 1.0
    stages = sorted(report.seconds.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in stages)
    click.echo(f"{total:.1f} s: {shares} (tokenize and write run beside encode)")
    if report.split_documents:
        click.echo(
            f"{report.split_documents:,} documents are longer than one window and were split into chunks", err=True
        )
    if report.calibration is not None and report.calibration.queries:
        click.echo(
            f"hybrid search: the encoder counts {report.calibration.dense_weight:g}, BM25 the rest "
            f"(calibrated on {report.calibration.queries} pseudo-queries)"
        )
    if report.recall_at_10 is not None and report.recall_at_10 < 1:
        click.echo(f"recall@10 against exact search: {report.recall_at_10:.3f}")


def _echo_hit(hit: "Hit") -> None:
    # a title that contains the id says both
    name, title = (hit.title, "") if hit.doc_id in hit.title else (hit.doc_id, hit.title)
    click.echo(
        f"{hit.rank:>2}. {hit.score:.3f}  {click.style(name, fg='cyan', bold=True)}{'  ' if title else ''}{title}"
    )
    text, end = "", 0
    for span in hit.highlights:
        text += hit.snippet[end : span.start] + click.style(hit.snippet[span.start : span.end], bold=True, fg="yellow")
        end = span.end
    click.echo(f"    {text}{hit.snippet[end:]}\n")
