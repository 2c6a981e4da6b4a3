"""What each stage was told: the config that its manifest records, as JSON."""

import json

from nanochat.report.document import Block, Code, Fold, Paragraph, Section
from nanochat.report.inputs import Inputs


def configuration_section(inputs: Inputs) -> Section:
    """The resolved config of every finished training stage and tokenizer."""
    items = [(f"{training.run}/{training.stage}", training.config) for training in inputs.trainings if training.finished]
    items += [(f"tokenizer {item.path.parent.name}", item.config) for item in inputs.tokenizers]
    blocks: list[Block] = [Fold(name, (Code(json.dumps(config, indent=2, ensure_ascii=False)),)) for name, config in items]
    return Section("Configuration", "configuration", tuple(blocks or [Paragraph("Not available: no stage has finished.", "missing")]))
