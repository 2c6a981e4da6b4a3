"""Which checks belong together: of an experiment in a folder, and of a cluster."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nanochat.config import Experiment
from nanochat.preflight import environment
from nanochat.preflight.checks import Check, ok
from nanochat.preflight.cluster import check_cluster
from nanochat.preflight.data import FETCH, check_data, check_tokens
from nanochat.preflight.leftover import check_left_jobs
from nanochat.preflight.needs import data_needs, open_needs
from nanochat.preflight.requests import Request
from nanochat.preflight.shared import user_name
from nanochat.preflight.sizes import Space, space_needed

RESOURCES, RESULTS = Path("resources"), Path("results")


def installation_checks() -> list[Check]:
    """Versions, locale, a folder that can be written, the clock."""
    installed = [environment.check_python(), *environment.check_packages(environment.requirements()), environment.check_locale()]
    return [*installed, *environment.check_writable(RESULTS)]


def experiment_checks(experiment: Experiment, *, fetched_later: bool = False, fetch: str = FETCH) -> list[Check]:
    """Everything but the cluster: data, tokens, installation, disk. `fetched_later`: this very call will fetch what is missing."""
    needs = open_needs(experiment, Path())
    manifests = {(need.source, need.part): Path(need.manifest) for need in needs}
    data = check_data(needs, {need.source: experiment.source(need.source) for need in needs}, manifests, fetched_later=fetched_later, fetch=fetch)
    if done := sorted({need.source for need in set(data_needs(experiment)) - set(needs)}):
        data.append(ok("data no longer there", f"{', '.join(done)}; all that is made from them is finished"))
    return [*data, *check_tokens(experiment, RESULTS), *installation_checks(), *disk_checks(space_needed(experiment))]


def disk_checks(needed: Sequence[Space]) -> list[Check]:
    """Space and quota; of resources/ and results/ apart where one of them is a link to another file system."""
    if len({environment.existing(place).stat().st_dev for place in (RESOURCES, RESULTS)}) == 1:
        return _disk(needed, RESULTS, "")
    return [
        check for place in (RESOURCES, RESULTS) for check in _disk([item for item in needed if Path(item.marker).is_relative_to(place)], place, f" of {place}")
    ]


def _disk(needed: Sequence[Space], place: Path, which: str) -> list[Check]:
    left = environment.missing_bytes(needed, Path())
    checks = environment.check_space(left, place), environment.check_quota(left, place, user_name(os.getuid()))
    return [replace(check, name=f"{check.name}{which}") for check in checks]


def cluster_checks(requests: Sequence[Request]) -> list[Check]:
    """SLURM, and jobs of this folder that are still in its queue."""
    checks = check_cluster(requests, user_name(os.getuid()))
    return checks if checks[0].state == "problem" else [*checks, check_left_jobs(Path.cwd())]
