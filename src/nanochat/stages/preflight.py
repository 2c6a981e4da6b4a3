"""Check everything that a later stage can die of, before the first GPU second is spent; takes seconds and changes nothing.

reads   the experiment, the manifests in resources/ and results/, the installation, the disk; with --profile of a SLURM cluster
        what sinfo, scontrol, squeue and sacctmgr say
writes  one line per check to stdout: ok, warning, problem or not checked, and what to type; with --json one object.
        Exit code 0: no problem; 2: at least one, all of them listed
by hand nanochat preflight --profile slurm
        nanochat preflight --configfile configs/laptop.yaml
        nanochat preflight --profile slurm --gpu-job      also submits a job of a minute that tells what a compute node sees

In the workflow: --config '{"needs": [...]}' --sources MANIFEST ... --checks results/preflight.json checks the data and the
installation alone, and leaves no file if there is a problem.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

from nanochat.artifacts import write_json
from nanochat.config import Section, load
from nanochat.data.sources import SOURCES
from nanochat.errors import UserError
from nanochat.preflight.checks import Check, as_json, problem, problems, summary
from nanochat.preflight.collect import cluster_checks, experiment_checks, installation_checks
from nanochat.preflight.data import check_data
from nanochat.preflight.gpu_job import look_around, run_gpu_job
from nanochat.preflight.needs import Need
from nanochat.preflight.requests import Profile, read_profile
from nanochat.stages.common import StageParser, positive_float, read_stage_config, stage_parser

DEFAULT_EXPERIMENT = Path("config.yaml")


class PreflightStage(Section):
    """The subtree that the rule hands over: what the stages read, as source/part/split."""

    needs: list[str]


def parser() -> StageParser:
    """Flags of this verb."""
    flags = stage_parser(__doc__, "preflight")
    flags.add_argument("--configfile", type=Path, help="the experiment (default: the one of the profile, else config.yaml)")
    flags.add_argument("--profile", help="a profile of snakemake's: slurm, or a folder; without one no cluster is checked")
    flags.add_argument("--gpu-job", action="store_true", help="submit a short job to the partition of the trainers and tell what it saw")
    flags.add_argument("--gpu-job-wait", type=positive_float, default=600.0, metavar="SECONDS", help="how long it may wait in the queue (default: 600)")
    flags.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    flags.add_argument("--config", metavar="JSON", help="in the workflow: needs, a list of source/part/split")
    flags.add_argument("--sources", type=Path, nargs="*", default=[], metavar="MANIFEST", help="in the workflow: the fetched parts")
    flags.add_argument("--checks", type=Path, metavar="OUT", help="in the workflow: the file to write")
    flags.add_argument("--on-node", type=Path, metavar="OUT", help="what --gpu-job runs on the node: write what is seen there")
    return flags


def main(arguments: list[str]) -> None:
    """Check, tell, and end with 2 if there is a problem."""
    given = parser().parse_args(arguments)
    if given.on_node:
        write_json(given.on_node, look_around(given.on_node.parent))
        return
    if (given.config is None) != (given.checks is None):
        raise UserError("preflight: --config and --checks belong together; give both, or neither to check an experiment by hand")
    checks = rule_checks(given) if given.checks else checks_by_hand(given)
    print(json.dumps(as_json(checks), indent=1, ensure_ascii=False) if given.json else "\n".join(check.line for check in checks), flush=True)
    if found := problems(checks):
        raise UserError(f"preflight: {len(found)} problem{'s' if len(found) > 1 else ''}, each with its cure above; nothing was started")
    if given.checks:
        write_json(given.checks, as_json(checks))
    print(f"preflight: {summary(checks)}", file=sys.stderr)


def rule_checks(given: Namespace) -> list[Check]:
    """Data and installation, as the rule asks."""
    try:
        needs = [Need.parse(text) for text in read_stage_config(given.config, PreflightStage).needs]
    except ValueError:
        raise UserError("--config: needs must be a list of source/part/split") from None
    manifests = {(path.absolute().parts[-3], path.absolute().parts[-2]): path for path in given.sources}
    return [*check_data(needs, SOURCES, manifests), *installation_checks()]


def checks_by_hand(given: Namespace) -> list[Check]:
    """Everything that can be known here about an experiment and a machine."""
    profile = read_profile(given.profile) if given.profile else None
    on_slurm = profile is not None and profile.executor == "slurm"
    if given.gpu_job and not on_slurm:
        raise UserError("preflight: --gpu-job needs a cluster; give --profile slurm")
    file = given.configfile or (profile and profile.experiment) or DEFAULT_EXPERIMENT
    which = "" if file == DEFAULT_EXPERIMENT else f" --configfile {file}"
    checks = experiment_checks(load(file), fetch=f"fetch it: snakemake --cores 4 fetch{which}")
    if profile is not None and on_slurm:
        checks += cluster_checks(profile.requests())
        if given.gpu_job:
            checks += gpu_job_checks(profile, checks, given.gpu_job_wait)
    return checks


def gpu_job_checks(profile: Profile, before: list[Check], wait_seconds: float) -> list[Check]:
    """What a compute node sees, if a job could be submitted at all."""
    requests = [request for request in profile.requests() if request.gpus]
    if not requests:
        return [problem("gpu job", f"no rule of {profile.path} asks for GPUs", "set gres, or gpu and gpu_model, of base_train in set-resources")]
    if any(check.name == "slurm" and check.state == "problem" for check in before):
        return []
    return run_gpu_job(next((request for request in requests if request.rule == "base_train"), requests[0]), Path.cwd(), wait_seconds=wait_seconds)
