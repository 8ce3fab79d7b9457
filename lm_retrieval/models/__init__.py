"""Language models behind one interface. `build_model` is the only place that asks which one."""

from lm_retrieval.config import BigramConfig, LstmConfig, ModelConfig
from lm_retrieval.models.base import LanguageModel, ModelOutput, State, detach_state
from lm_retrieval.models.bigram import BigramModel
from lm_retrieval.models.learned_pooling import LearnedPooling
from lm_retrieval.models.lstm import LstmModel
from lm_retrieval.models.transformer import TransformerModel

__all__ = ["LanguageModel", "LearnedPooling", "ModelOutput", "State", "build_model", "detach_state"]


def build_model(config: ModelConfig, *, vocab_size: int) -> LanguageModel:
    """A freshly initialised model for a vocabulary of `vocab_size` tokens."""
    match config:
        case LstmConfig():
            return LstmModel(config, vocab_size=vocab_size)
        case BigramConfig():
            return BigramModel(vocab_size=vocab_size)
        case _:
            return TransformerModel(config, vocab_size=vocab_size)
