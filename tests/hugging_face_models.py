"""Tiny randomly initialised models of transformers, saved as a user would find them."""

from pathlib import Path

import torch
from conftest import make_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

MARK = "<|endoftext|>"


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 tokens, like GPT-2's."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[MARK], initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(make_texts(20), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=MARK, eos_token=MARK)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_gpt2(folder: Path, *, positions: int = 64) -> Path:
    """GPT-2 with two layers of 32 dimensions."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(sizes).save_pretrained(folder)
    return folder


def save_mistral(folder: Path) -> Path:
    """A model whose cache is a sliding window of eight tokens."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, max_position_embeddings=64, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    MistralForCausalLM(sizes).save_pretrained(folder)
    return folder
