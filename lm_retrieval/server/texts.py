"""Texts of a request as token ids, within the server's limits."""

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from lm_retrieval.server.errors import invalid, too_large
from lm_retrieval.server.settings import Limits
from lm_retrieval.tokenizer import TextTokenizer, Tokenizer

Text = str | Sequence[int]

_SHORT_CHARACTERS = 1000  # tokenized in less time than it takes to wake another thread


async def token_ids_of(
    tokenizer: TextTokenizer, texts: Sequence[Text], *, limits: Limits, allow_empty: bool = False
) -> list[list[int]]:
    """The token ids of each text, without begin marks; what is given as ids is checked and kept.

    Raises:
        ApiError: too many texts (413); too many tokens, an id that the model does not have, or, unless they are
            allowed, a text without tokens (422).
    """
    check_count(len(texts), limits)
    # others have a lock, which a long text may hold
    if isinstance(tokenizer, Tokenizer) and sum(map(len, texts)) <= _SHORT_CHARACTERS:
        found = [_ids(tokenizer, text) for text in texts]
    else:
        found = await run_in_threadpool(lambda: [_ids(tokenizer, text) for text in texts])
    for place, token_ids in enumerate(found):
        _check(place, token_ids, tokenizer, limits, allow_empty)
    total = sum(map(len, found))
    if total > limits.max_request_tokens:
        raise too_large(f"{total} tokens in all; at most {limits.max_request_tokens} can be sent at once")
    return found


def check_count(count: int, limits: Limits) -> None:
    """Raises ApiError (413) for too many texts."""
    if count > limits.max_texts:
        raise too_large(f"{count} texts; at most {limits.max_texts} can be sent at once")


def _ids(tokenizer: TextTokenizer, text: Text) -> list[int]:
    return tokenizer.encode(text) if isinstance(text, str) else list(text)


def _check(place: int, token_ids: list[int], tokenizer: TextTokenizer, limits: Limits, allow_empty: bool) -> None:
    if not token_ids and not allow_empty:
        raise invalid(f"text {place} is empty")
    if len(token_ids) > limits.max_text_tokens:
        raise invalid(
            f"text {place} has {len(token_ids)} tokens; at most {limits.max_text_tokens} can be read",
            code="text_too_long",
        )
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < tokenizer.vocab_size), None)
    if wrong is not None:
        raise invalid(f"text {place}: {wrong} is no token id of this model; ids are 0 to {tokenizer.vocab_size - 1}")
