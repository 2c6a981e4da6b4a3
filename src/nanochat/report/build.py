"""The report as a document: which sections there are, and in which order."""

from nanochat.config import PHASES, Report
from nanochat.report import text
from nanochat.report.background import environment_section, provenance_section
from nanochat.report.configuration import configuration_section
from nanochat.report.data import data_section, tokenizer_section, tokens_section
from nanochat.report.document import Document
from nanochat.report.inputs import Inputs
from nanochat.report.summary import samples_section, scores_section, summary_section
from nanochat.report.training import training_section


def build_document(inputs: Inputs, config: Report) -> Document:
    """Results first, then how they came about."""
    price = config.gpu_hour_price
    trained = [section for phase in PHASES if (section := training_section(inputs, phase, price))]
    sections = (
        summary_section(inputs, price),
        samples_section(inputs),
        scores_section(inputs),
        *trained,
        data_section(inputs),
        tokenizer_section(inputs),
        tokens_section(inputs),
        environment_section(inputs, price),
        configuration_section(inputs),
        provenance_section(inputs),
    )
    runs = text.listed(inputs.runs) or "none yet"
    return Document(config.title, f"Runs: {runs}. Every number comes from a JSON file that a stage wrote; what is not there is said, never guessed.", sections)
