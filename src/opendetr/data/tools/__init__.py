"""Tools for datasets: check, fix, convert, split."""

from opendetr.data.tools.check import SIZE_LIMITS, DataReport, Demands, annotation_faults, check_data
from opendetr.data.tools.convert import WRITTEN_FORMATS, notes_on_source, write_data
from opendetr.data.tools.fix import write_fixed
from opendetr.data.tools.misreadings import queries_for

__all__ = [
    "SIZE_LIMITS",
    "WRITTEN_FORMATS",
    "DataReport",
    "Demands",
    "annotation_faults",
    "check_data",
    "notes_on_source",
    "queries_for",
    "write_data",
    "write_fixed",
]
