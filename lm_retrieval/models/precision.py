"""Models in fewer bits: bfloat16 and float16 as torch has them; int8 as whole numbers from -127 to 127, a scale a row.

Shapes: R rows, C columns.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from lm_retrieval.models.base import LanguageModel
from lm_retrieval.runtime import Precision, resolve_dtype

M = TypeVar("M", bound=nn.Module)

_LARGEST = 127


def to_int8(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) weights → (R, C) int8 and (R,) float32 scales; `from_int8` gives the nearest values back.

    Scales have bfloat16's eight significant bits: products with them are exact in float32, so that weights which have
    been through here once come out of a second time unchanged.
    """
    weights = weights.float()
    scales = (weights.abs().amax(1) / _LARGEST).bfloat16().float()
    scales[scales < torch.finfo(torch.float32).tiny] = 0
    rounded = (weights / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    rounded[scales == 0] = 0
    return rounded.clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def from_int8(rounded: Tensor, scales: Tensor) -> Tensor:
    """(R, C) int8 and (R,) scales → (R, C) float32."""
    return rounded.float() * scales[:, None]


def in_precision(model: LanguageModel, precision: Precision) -> LanguageModel:
    """The model where it has this precision already, else a copy; a copy in `int8` computes as `auto` does.

    Raises:
        ConfigError: the device cannot compute in it.
    """
    dtype = resolve_dtype("auto" if precision == "int8" else precision, model.device)
    if precision != "int8" and dtype == next(model.parameters()).dtype:
        return model
    return (rounded_to_int8(model) if precision == "int8" else copy.deepcopy(model)).to(dtype)


def rounded_to_int8(module: M) -> M:
    """A copy whose matrices have the values they would have if they were stored in eight bits."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.copy_(from_int8(*to_int8(parameter)))
    return module
