"""Every error a user can cause, as one tree.

LmRetrievalError
├── ConfigError         a configuration file or option that cannot be used
├── CorpusError         text, queries or judgments that cannot be read
├── TokenizerError      a tokenizer that cannot be trained, read or used
├── CheckpointError     a model folder that is missing, damaged or does not fit
├── TrainingError       a training run that cannot start or go on
├── PeerError           another process of the same run has ended
├── IndexFormatError    an index folder that is missing or damaged
├── MismatchError       two artifacts that do not belong together
├── EvaluationError     runs or judgments that cannot be scored
├── EngineError         worker processes that cannot be started or reached, or that died
├── StorageError        a file system or object store said no: full, missing, denied
└── MissingExtraError   an optional dependency that is not installed

A message says what happened, where, and what to do next, in one line.
"""


class LmRetrievalError(Exception):
    """Base class: catching it catches every error this package raises on purpose."""


class ConfigError(LmRetrievalError):
    """A configuration file or option cannot be used."""


class CorpusError(LmRetrievalError):
    """Text, queries or judgments cannot be read."""


class TokenizerError(LmRetrievalError):
    """A tokenizer cannot be trained, read or used."""


class CheckpointError(LmRetrievalError):
    """A model folder is missing, damaged, or its weights do not fit its config."""


class TrainingError(LmRetrievalError):
    """A training run cannot start or cannot go on."""


class PeerError(LmRetrievalError):
    """Another process of the same run has ended, so this one cannot go on."""


class IndexFormatError(LmRetrievalError):
    """An index folder is missing, damaged or of an unknown format version."""


class MismatchError(LmRetrievalError):
    """Two artifacts do not belong together, for example an index and an encoder."""


class EvaluationError(LmRetrievalError):
    """A run or judgments cannot be scored."""


class EngineError(LmRetrievalError):
    """Worker processes cannot be started or reached, or died."""


class StorageError(LmRetrievalError):
    """A file system or object store refused to read or write."""


class MissingExtraError(LmRetrievalError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, *, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra '{extra}': pip install 'lm_retrieval[{extra}]'; "
            f"in a clone: pip install -c constraints.txt -e '.[{extra}]'"
        )
