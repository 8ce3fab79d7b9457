"""AdamW (Loshchilov & Hutter, 2017, arXiv:1711.05101) with warm-up and cosine decay."""

import math
from collections.abc import Callable

import torch
from torch import nn

from lm_retrieval.config import TrainingConfig


def build_optimizer(
    module: nn.Module, config: TrainingConfig, *, ratio: Callable[[str], float] = lambda _: 1.0
) -> torch.optim.AdamW:
    """AdamW over all parameters; biases and norms are not decayed.

    `ratio` gives the multiple of the learning rate for a parameter's name; groups carry it as `learning_rate_ratio`.
    """
    members: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault((parameter.dim() >= 2, ratio(name)), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "learning_rate_ratio": multiple}
        for (decayed, multiple), parameters in members.items()
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, *, progress: float, config: TrainingConfig) -> float:
    """Linear warm-up over `warmup_steps`, then cosine decay with the share `progress` (0..1) of the budget spent."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    floor = config.min_learning_rate_ratio
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warmup * decay
