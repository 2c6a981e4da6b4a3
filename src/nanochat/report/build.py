"""The report as a document: which sections there are, and in which order."""

from nanochat.config import PHASES, Report
from nanochat.report import text
from nanochat.report.background import environment_section, header, provenance_section
from nanochat.report.compare import comparison_section
from nanochat.report.configuration import configuration_section
from nanochat.report.core import core_section
from nanochat.report.data import data_section, tokenizer_section, tokens_section
from nanochat.report.document import Document, Section
from nanochat.report.inputs import Inputs
from nanochat.report.samples import samples_section
from nanochat.report.scores import scores_section
from nanochat.report.summary import summary_section
from nanochat.report.training import training_section


def build_document(inputs: Inputs, config: Report) -> Document:
    """Results first, then how they came about."""
    price = config.gpu_hour_price
    trained = [section for phase in PHASES if (section := training_section(inputs, phase, price))]
    sections: tuple[Section | None, ...] = (
        summary_section(inputs, price),
        comparison_section(inputs, price),
        core_section(inputs),
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
    said = f"Runs: {runs}. The numbers are those of the files that the stages wrote; what is missing is said, what is an estimate is marked."
    return Document(config.title, said, tuple(section for section in sections if section), header(inputs, price))
