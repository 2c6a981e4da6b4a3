"""Write the report of one or several runs from the JSON files of their stages.

reads    manifests of training stages (and, beside each: provenance.json, metrics.jsonl, model.json, samples.json), scores,
         and manifests of tokenizers, token chunks and sources
writes   a Markdown and an HTML file with the same content; the HTML needs no network and no script
resumes  nothing to resume: it takes seconds
by hand  nanochat report --config '{}' --run-manifests results/quickstart/*/manifest.json
           --scores results/quickstart/scores/*/*.json --markdown report.md --html report.html

A file that does not exist is listed in the report with the command that builds it, so a half-finished run has a report too.
"""

from pathlib import Path

from nanochat.artifacts import write_text
from nanochat.config import Report
from nanochat.report import render
from nanochat.report.build import build_document
from nanochat.report.inputs import read_inputs
from nanochat.report.summary import INCOMPLETE
from nanochat.runtime import log, own_matplotlib
from nanochat.stages.common import StageParser, read_stage_config, stage_parser


def parser() -> StageParser:
    """Flags of this stage."""
    flags = stage_parser(__doc__, "report")
    flags.add_argument("--config", required=True, help="report: subtree, a JSON file or JSON text")
    for name, what in (
        ("run-manifests", "manifests of base_train, mid_train, chat_sft, chat_rl: results/RUN/STAGE/manifest.json"),
        ("scores", "results/RUN/scores/PHASE/TASK.json"),
        ("tokenizers", "manifests of tokenizers"),
        ("tokens", "manifests of token chunks"),
        ("sources", "manifests of fetched sources"),
        ("text", "manifests of prepared text"),
        ("contamination", "tables of evaluation items that occur in the text of a corpus"),
    ):
        flags.add_argument(f"--{name}", type=Path, nargs="*", default=[], metavar="FILE", help=what)
    flags.add_argument("--markdown", type=Path, required=True, metavar="OUT", help="report.md to write")
    flags.add_argument("--html", type=Path, required=True, metavar="OUT", help="report.html to write")
    return flags


def main(arguments: list[str]) -> None:
    """Read, arrange, write."""
    given = parser().parse_args(arguments)
    config = read_stage_config(given.config, Report)
    inputs = read_inputs(
        run_manifests=given.run_manifests,
        scores=given.scores,
        tokenizers=given.tokenizers,
        tokens=given.tokens,
        sources=given.sources,
        text=given.text,
        contamination=given.contamination,
        runs=config.runs,
    )
    with own_matplotlib():
        document = build_document(inputs, config)
    write_text(given.markdown, render.markdown(document))
    write_text(given.html, render.html(document))
    if inputs.missing:
        log(f"report: {INCOMPLETE}")
    for item in inputs.missing:
        log(f"report: {item.sentence()}")
    log(f"report: {given.html}")
