"""The sampling controls that several parts of the page share."""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr
from pydantic import ValidationError

from lm_retrieval.generation import PRESETS, GenerationConfig
from lm_retrieval.server.completions import SEED_BITS, check_new_tokens
from lm_retrieval.server.errors import as_api_error
from lm_retrieval.server.schemas.generation import Controls
from lm_retrieval.server.served import Served

_SHARED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_MOST_SHOWN = 512
_START = "balanced"


class SamplingControls(NamedTuple):
    """Components, in the order in which `read_controls` takes their values."""

    max_tokens: gr.Slider
    temperature: gr.Slider
    top_k: gr.Slider
    top_p: gr.Slider
    min_p: gr.Slider
    repetition_penalty: gr.Slider
    seed: gr.Number


def read_controls(served: Served, values: Sequence[Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """Settings from the values of `SamplingControls`, and the same by the names of the API; an empty seed is drawn.

    Raises:
        gr.Error: a value out of its range.
    """
    given = dict(zip(SamplingControls._fields, values, strict=True))
    try:
        config = Controls.model_validate(given).config(seed=secrets.randbits(SEED_BITS))
        check_new_tokens(config.max_new_tokens, served.settings.limits)
    except ValidationError as error:
        problem = error.errors()[0]
        raise gr.Error(f"{problem['loc'][0]}: {problem['msg']}") from None
    except Exception as error:
        raise gr.Error(as_api_error(error).message) from None
    return config, given | {"seed": config.seed}


def sampling_controls(served: Served, *, seed: int | None = None) -> SamplingControls:
    """Presets and sliders."""
    preset = gr.Radio(list(PRESETS), value=_START, label="Preset", info="Sets the sliders below.")
    start = PRESETS[_START]
    most = min(_MOST_SHOWN, served.settings.limits.max_new_tokens)
    with gr.Row():
        max_tokens = gr.Slider(1, most, min(64, most), step=1, label="New tokens, at most")
        given = gr.Number(seed, label="Seed", info="Empty: another one each time.", precision=0, minimum=0)
    with gr.Row():
        temperature = gr.Slider(0, 2, start.temperature, step=0.05, label="Temperature", info="0: the likeliest token.")
        top_k = gr.Slider(0, 200, start.top_k, step=1, label="Top k", info="0: all tokens.")
    with gr.Row():
        top_p = gr.Slider(0.01, 1, start.top_p, step=0.01, label="Top p")
        min_p = gr.Slider(0, 0.5, start.min_p, step=0.01, label="Min p")
        penalty = gr.Slider(1, 2, start.repetition_penalty, step=0.05, label="Repetition penalty")
    controls = SamplingControls(max_tokens, temperature, top_k, top_p, min_p, penalty, given)
    preset.input(
        lambda name: [getattr(PRESETS[name], field) for field in _SHARED],
        preset,
        [getattr(controls, field) for field in _SHARED],
        api_visibility="private",
        show_progress="hidden",
    )
    return controls
