"""AdamW (Loshchilov & Hutter, 2017, arXiv:1711.05101) with warm-up and cosine decay."""

import math

import torch
from torch import nn

from lm_retrieval.config import TrainingConfig


def build_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters; biases and norms are not decayed."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, *, progress: float, config: TrainingConfig) -> float:
    """Linear warm-up over `warmup_steps`, then cosine decay with the share `progress` (0..1) of the budget spent."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    floor = config.min_learning_rate_ratio
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warmup * decay
