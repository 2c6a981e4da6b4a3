"""What every stage's command line has in common: flags as one-sentence contracts, and its one subtree of the experiment."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from nanochat.artifacts import Provenance, exclusive, read_json, write_json
from nanochat.config import Section, dump, parse_section
from nanochat.errors import UserError
from nanochat.launch.flags import StageParser as StageParser  # stages name its type
from nanochat.launch.flags import add_launch_flags, number_above
from nanochat.runtime import slurm_job_id

SectionType = TypeVar("SectionType", bound=Any)
positive_int, positive_float = number_above(int, 0), number_above(float, 0)


def stage_parser(docstring: str | None, name: str) -> StageParser:
    """Parser of stage `name` whose --help opens with the module docstring."""
    return StageParser(prog=f"nanochat {name}", description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def read_stage_config(text: str, section: type[SectionType]) -> SectionType:
    """The subtree that a stage received: `text` is JSON itself (it starts with a brace) or the path of a JSON file."""
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--config: not valid JSON ({error}); give a JSON object or the path of a JSON file") from None
    else:
        content = read_json(Path(text))
    if not isinstance(content, dict):
        raise UserError(f"--config={text}: holds a {type(content).__name__}, a JSON object is needed")
    return parse_section(section, content, "--config")


@contextlib.contextmanager
def attempt_at(manifest: Path, stage: str, config: Section, **facts: Any) -> Iterator[Provenance]:
    """One attempt at the result that `manifest` will describe: its folder locked, config.json written, its story closed whatever happens."""
    folder = manifest.parent
    with exclusive(folder, slurm_job_id()):
        manifest.unlink(missing_ok=True)
        story = Provenance(folder, stage, **facts)
        write_json(folder / "config.json", dump(config))
        try:
            yield story
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk is reported by what met it first
                story.finish("failed")
            raise
        if story.attempt["state"] == "running":
            story.finish()


def add_training_flags(parser: StageParser) -> None:
    """Flags of the stages that train: where to write, and on what machine (which never changes what is learnt)."""
    parser.add_argument("--weights", type=Path, required=True, metavar="OUT", help="model.safetensors to write")
    parser.add_argument("--manifest", type=Path, required=True, metavar="OUT", help="manifest.json to write, last, beside the weights")
    add_machine_flags(parser)
    help_of = "compile the blocks of the model with torch.compile: auto (default) means on a GPU; the rounding of compiled code is another"
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help=help_of)
    add_launch_flags(parser)
    parser.add_argument("--max-seconds", type=positive_float, help="stop with resume state saved and exit code 75 after so much wall time")


def add_machine_flags(parser: StageParser) -> None:
    """--device and --threads."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: cuda, else mps, else cpu")
    parser.add_argument("--threads", type=positive_int, help="CPU threads per rank (default: torch's choice)")
