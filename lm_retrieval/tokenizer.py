"""SentencePiece tokenizers: train, encode with a word cache, decode, fingerprint.

SentencePiece's BPE never merges across the start of a word, so a text's ids are the ids of its words in a row.
Encoding each distinct word once therefore gives the same ids several times faster.
"""

import io
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from lm_retrieval.artifacts import atomic_file, sha256_bytes, storage_errors
from lm_retrieval.errors import TokenizerError

if TYPE_CHECKING:
    from lm_retrieval.config import TokenizerConfig

_SPACE = "\u2581"  # SentencePiece's visible space; in a text it is an ordinary character and goes in as bytes
_MAX_PIECE_CHARACTERS = 512  # SentencePiece needs memory for every character of what it encodes at once
_MAX_SENTENCE_BYTES = 4000  # SentencePiece's trainer passes over longer lines
_MAX_CACHED_WORDS = 400_000
_PROBE = "\ufb01  A\t\u00a0\n b "


class TextTokenizer(Protocol):
    """What language models need of a tokenizer, whoever made it.

    Attributes:
        vocab_size: number of distinct ids.
        bos_id, eos_id: ids that begin and end a document; an `eos_id` of -1 never occurs.
    """

    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without begin and end marks."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids; begin and end marks vanish."""

    def token_text(self, token_id: int) -> str:
        """One token as text; part of a character is shown as `bytes:` and its escaped bytes, as OpenAI's API does."""

    def mark_text(self, token_id: int) -> str:
        """The name of a begin or end mark, such as `</s>`."""


def prompt_ids(tokenizer: TextTokenizer, prompt: str | Sequence[int]) -> list[int]:
    """A text, or the ids of one, as a model reads it: behind the begin mark, which is not put before another one."""
    token_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    return token_ids if token_ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *token_ids]


class Tokenizer:
    """A trained SentencePiece model.

    Attributes:
        vocab_size: number of distinct ids.
        bos_id, eos_id: ids that begin and end a document.
        lossless: `decode(encode(text)) == text` for every text.
    """

    def __init__(self, model: bytes) -> None:
        """Reads a serialised SentencePiece model.

        Raises:
            TokenizerError: the bytes are not a SentencePiece model.
        """
        if not model:
            raise TokenizerError("not a SentencePiece model; train one with `lmr tokenizer train`")
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = self._processor.vocab_size()
        except (RuntimeError, OSError) as error:
            raise TokenizerError("not a SentencePiece model; train one with `lmr tokenizer train`") from error
        self.model = model
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.lossless: bool = self._processor.decode(self._processor.encode(_PROBE)) == _PROBE
        self._words = _WordCache(self._encode_word)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        """Another process is given the model and starts a word cache of its own."""
        return Tokenizer, (self.model,)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Reads a `tokenizer.model` file.

        Raises:
            StorageError: the file cannot be read.
            TokenizerError: it is not a SentencePiece model.
        """
        with storage_errors(Path(path)):
            model = Path(path).read_bytes()
        try:
            return cls(model)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], config: "TokenizerConfig | None" = None) -> "Tokenizer":
        """Trains on an iterable of texts; the same texts give the same tokenizer.

        A vocabulary larger than the texts support is made smaller; compare `vocab_size` with what was asked for.

        Raises:
            TokenizerError: there is no text, or the vocabulary is too small for the characters.
        """
        from lm_retrieval.config import TokenizerConfig

        config = config or TokenizerConfig()
        lines = _sample_lines(texts, config.max_training_bytes)
        if not lines:
            raise TokenizerError("no text to train a tokenizer on; check that the corpus is not empty")
        try:
            return cls(_train(lines, config, config.vocab_size))
        except RuntimeError as error:
            limit = re.search(r"set it to a value <= (\d+)", str(error))
            if limit:
                return cls(_train(lines, config, int(limit[1])))
            needed = re.search(r"(\d+) ?(?:<|vs) ?(\d+)|smaller than required_chars\D*(\d+)\D+(\d+)", str(error))
            detail = f" ({needed[0]})" if needed else ""
            raise TokenizerError(
                f"vocab_size {config.vocab_size} is too small for this text{detail}; choose a larger one"
            ) from error

    def save(self, path: Path | str) -> None:
        """Writes the model atomically."""
        with atomic_file(Path(path), "wb") as stream:
            stream.write(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model: equal fingerprints give equal ids."""
        return sha256_bytes(self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without begin and end marks."""
        return list(chain.from_iterable(map(self._words.__getitem__, text.split(" ")))) if text else []

    def encode_batch(self, texts: Iterable[str]) -> list[NDArray[np.int32]]:
        """Token ids of many texts: one int32 array (T,) each."""
        return [np.asarray(self.encode(text), dtype=np.int32) for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids; begin and end marks vanish."""
        return str(self._processor.decode([int(token_id) for token_id in token_ids]))

    def pieces(self, text: str) -> list[str]:
        """The text's tokens as SentencePiece shows them (`▁` is a space)."""
        return [str(self._processor.id_to_piece(token_id)) for token_id in self.encode(text)]

    def token_text(self, token_id: int) -> str:
        """One token as text; part of a character is shown as `bytes:` and its escaped bytes, as OpenAI's API does."""
        piece = str(self._processor.id_to_piece(token_id))
        if self._processor.is_byte(token_id):
            byte = int(piece[3:5], 16)
            return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"
        return piece.replace(_SPACE, " ")

    def mark_text(self, token_id: int) -> str:
        """The name of a begin or end mark, such as `</s>`."""
        return str(self._processor.id_to_piece(token_id))

    def _encode_word(self, word: str) -> list[int]:
        """What stands between two spaces, with the space before it, which SentencePiece adds (its dummy prefix)."""
        encode = self._processor.encode
        if not self.lossless:
            parts = [word] if len(word) <= _MAX_PIECE_CHARACTERS else _FOLDED_SPLIT.findall(word)
            return [token for part in parts for token in encode(part)]
        if _SPACE not in word and 0 < len(word) <= _MAX_PIECE_CHARACTERS:
            return list(encode(word))
        ids = list(encode("\n"))[:1]  # the space alone
        for place, part in enumerate(_EXACT_SPLIT.findall(word)):
            if part == _SPACE:
                ids += [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
            elif place:
                ids += encode("\n" + part)[2:]
            else:
                ids = list(encode(part))
        return ids


# a word longer than one piece is cut at line ends first, which no token crosses
_FOLDED_SPLIT = re.compile(rf"[^\t\r\n]{{1,{_MAX_PIECE_CHARACTERS}}}")
_EXACT_SPLIT = re.compile(rf"\n|{_SPACE}|[^\n{_SPACE}]{{1,{_MAX_PIECE_CHARACTERS}}}")


class _WordCache(dict[str, tuple[int, ...]]):
    """Remembers the ids of each word; emptied when full, so that memory stays bounded."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> tuple[int, ...]:
        token_ids = tuple(self._encode(word))
        if len(word) <= _MAX_PIECE_CHARACTERS:
            if len(self) >= _MAX_CACHED_WORDS:
                self.clear()
            self[word] = token_ids
        return token_ids


def _train(lines: list[str], config: "TokenizerConfig", vocab_size: int) -> bytes:
    buffer = io.BytesIO()
    folded = config.normalizer != "identity"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type=config.type,
        vocab_size=vocab_size,
        character_coverage=1.0 if config.type == "char" else 0.9999,
        byte_fallback=True,
        user_defined_symbols=[] if folded else ["\n"],
        normalization_rule_name=config.normalizer,
        remove_extra_whitespaces=folded,
        max_sentence_length=_MAX_SENTENCE_BYTES + 200,
        num_threads=1,
        minloglevel=2,
    )
    return buffer.getvalue()


def _sample_lines(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Lines of at most `_MAX_SENTENCE_BYTES`; an even sample (reservoir) when there are more than `max_bytes`."""
    generator = random.Random(0)
    kept: list[str] = []
    kept_bytes = seen = 0
    for line in _lines(texts):
        seen += 1
        size = len(line.encode(errors="replace"))
        if kept_bytes + size <= max_bytes:
            kept.append(line)
            kept_bytes += size
            continue
        place = generator.randrange(seen)
        if place < len(kept):
            kept_bytes += size - len(kept[place].encode(errors="replace"))
            kept[place] = line
    return kept


def _lines(texts: Iterable[str]) -> Iterator[str]:
    limit = _MAX_SENTENCE_BYTES // 4  # characters of at most four bytes
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), limit):
                piece = line[start : start + limit].replace("\0", " ")
                if piece.strip():
                    yield piece
