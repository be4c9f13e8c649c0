"""Look inside a detector: attention, errors, certainty, decoder layers, queries, cost; compare two; ablations.

Each analysis has a function that returns numbers, and a function that draws them. One pass over the dataset collects
all predictions.
"""

from opendetr.analysis.ablation_runs import (
    InterruptedStudyError,
    Study,
    collect_study,
    open_study,
    run_study,
    study_commands,
)
from opendetr.analysis.ablation_tables import difference_text, tables, write_tables
from opendetr.analysis.ablations import BASELINE, SCALES, Published, Scale, Setting
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
from opendetr.analysis.comparison import (
    Comparison,
    Difference,
    compare_collected,
    draw_comparison,
    require_common_classes,
)
from opendetr.analysis.cost import PUBLISHED, Cost, analyse_cost, count_operations, count_parameters
from opendetr.analysis.errors import KINDS, Errors, analyse_errors
from opendetr.analysis.intervals import Estimate, Intervals, analyse_intervals
from opendetr.analysis.layers import LayerScores, NoObjectScores, analyse_layers, analyse_no_object
from opendetr.analysis.many import ManyOfOne, analyse_many
from opendetr.analysis.objects import ObjectFacts, analyse_objects
from opendetr.analysis.overview import Analysed, Analysis, analyse
from opendetr.analysis.page import draw_charts, with_interval, write_analysis
from opendetr.analysis.predictions import Collected, collect, require_detector
from opendetr.analysis.queries import QueryFacts, analyse_queries

__all__ = [
    "BASELINE",
    "KINDS",
    "PUBLISHED",
    "SCALES",
    "Analysed",
    "Analysis",
    "Collected",
    "Comparison",
    "Cost",
    "DenseAttention",
    "Difference",
    "Errors",
    "Estimate",
    "ImageAttention",
    "InterruptedStudyError",
    "Intervals",
    "LayerScores",
    "ManyOfOne",
    "NoObjectScores",
    "ObjectFacts",
    "Published",
    "QueryFacts",
    "SampledAttention",
    "Scale",
    "Setting",
    "Study",
    "analyse",
    "analyse_cost",
    "analyse_errors",
    "analyse_intervals",
    "analyse_layers",
    "analyse_many",
    "analyse_no_object",
    "analyse_objects",
    "analyse_queries",
    "attention_fragment",
    "attention_of",
    "attention_section",
    "capture",
    "collect",
    "collect_study",
    "compare_collected",
    "count_operations",
    "count_parameters",
    "decoder_figure",
    "difference_text",
    "draw_charts",
    "draw_comparison",
    "encoder_figure",
    "open_study",
    "require_common_classes",
    "require_detector",
    "run_study",
    "study_commands",
    "tables",
    "with_interval",
    "write_analysis",
    "write_exact",
    "write_figures",
    "write_tables",
]
