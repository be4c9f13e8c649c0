"""Analyses of a trained detector on a dataset: numbers, charts, and pages that show what the model does."""

from opendetr.analysis.attention import (
    DenseAttention,
    ImageAttention,
    SampledAttention,
    attention_of,
    capture,
    write_exact,
)
from opendetr.analysis.attention_figures import decoder_figure, encoder_figure, write_figures
from opendetr.analysis.attention_page import attention_fragment, attention_section

__all__ = [
    "DenseAttention",
    "ImageAttention",
    "SampledAttention",
    "attention_fragment",
    "attention_of",
    "attention_section",
    "capture",
    "decoder_figure",
    "encoder_figure",
    "write_exact",
    "write_figures",
]
