"""`lmr serve`."""

from typing import Any

import click

from lm_retrieval.cli.options import Command, device_option, dtype_option


@click.command(cls=Command)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]PATH",
    help="A checkpoint, or hf:PATH_OR_NAME; repeatable.  [default: rnn=lstm-base, transformer=transformer-base]",
)
@click.option(
    "--index",
    help="An index, its name in indexes/, or milvus+URI#COLLECTION; none serves none.  [default: the one built last]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free one.  [default: PORT, else 8000]")
@click.option(
    "--allowed-origin",
    "origins",
    multiple=True,
    help="Web origin whose pages may call the server, or *; repeatable.  [default: ALLOWED_ORIGIN, else none]",
)
@click.option("--open", "show", is_flag=True, help="Open the web page in a browser when everything is loaded.")
@click.option(
    "--page/--no-page",
    default=None,
    help="The web page under /ui.  [default: LMR_PAGE, else if extra ui is there]",
)
@dtype_option("float32")
@device_option
def serve(
    models: tuple[str, ...],
    index: str | None,
    port: int | None,
    origins: tuple[str, ...],
    show: bool,
    page: bool | None,
    **options: Any,
) -> None:
    """Serve models and an index over HTTP: a web page, REST, and OpenAI's completions and embeddings.

    With LMR_API_KEY set, requests need it as `Authorization: Bearer KEY`.

    \b
    Example:
      lmr serve --open
      lmr serve --model custom=checkpoints/mine --model gpt2=hf:models/gpt2 --index demo --port 9000
      curl localhost:8000/generate -H 'Content-Type: application/json' -d '{"prompt": "The river"}'
    """
    settings = _settings(models, index, port, origins, page=True if show else page, **options)
    from lm_retrieval.server.run import serve as run

    run(
        settings,
        announce=lambda address: click.echo(f"{address}  (API: {address}/docs)"),  # `/` leads a browser to the page
        show=show,
    )


def _settings(
    models: tuple[str, ...],
    index: str | None,
    port: int | None,
    origins: tuple[str, ...],
    *,
    page: bool | None,
    **options: Any,
) -> Any:
    """The server's settings, with everything checked that can be before loading."""
    from pydantic import ValidationError

    from lm_retrieval.errors import ConfigError, MissingExtraError

    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise MissingExtraError("lmr serve", extra="serve") from None
    from lm_retrieval.loading import check_source
    from lm_retrieval.search import check_index
    from lm_retrieval.server.settings import (
        ServerSettings,
        default_index,
        page_installed,
        parse_model,
        read_environment,
        split_origins,
    )

    chosen: dict[str, Any] = {**read_environment(), **options}
    if port is not None:
        chosen["port"] = port
    if origins:
        chosen["allowed_origins"] = split_origins(origins)
    if models:
        chosen["models"] = tuple(parse_model(model) for model in models)
    chosen["page"] = chosen.get("page", page_installed()) if page is None else page
    if chosen["page"] and not page_installed():
        raise MissingExtraError("the web page", extra="ui")
    chosen["index"] = default_index() if index is None else None if index == "none" else check_index(index)
    try:
        settings = ServerSettings.model_validate(chosen)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    for _, source in settings.models:
        check_source(source)
    return settings
