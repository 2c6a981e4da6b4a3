"""Which checks belong together: of an experiment in a folder, and of a cluster."""

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.config import Experiment
from nanochat.data.sources import Source
from nanochat.preflight import environment
from nanochat.preflight.checks import Check
from nanochat.preflight.cluster import check_cluster
from nanochat.preflight.data import check_data, check_tokens, manifest_path
from nanochat.preflight.leftover import check_left_jobs
from nanochat.preflight.needs import Need, data_needs
from nanochat.preflight.requests import Request
from nanochat.preflight.sizes import space_needed

RESULTS = Path("results")
RESOURCES = Path("resources")


def user_name() -> str:
    """Who runs this."""
    return pwd.getpwuid(os.getuid()).pw_name


def installation_checks() -> list[Check]:
    """Versions, locale, a folder that can be written, the clock."""
    installed = [environment.check_python(), *environment.check_packages(environment.requirements()), environment.check_locale()]
    return [*installed, *environment.check_writable(RESULTS)]


def data_checks(
    needs: Sequence[Need], sources: Mapping[str, Source], manifests: Mapping[tuple[str, str], Path] | None = None, *, fetched_later: bool = False
) -> list[Check]:
    """Fetched data; by default where the workflow puts them."""
    found = manifests if manifests is not None else {(need.source, need.part): manifest_path(RESOURCES, need) for need in needs}
    return check_data(needs, sources, found, fetched_later=fetched_later)


def experiment_checks(experiment: Experiment, *, fetched_later: bool = False) -> list[Check]:
    """Everything but the cluster: data, tokens, installation, disk. `fetched_later`: this very call will fetch what is missing."""
    needs = data_needs(experiment)
    data = data_checks(needs, {need.source: experiment.source(need.source) for need in needs}, fetched_later=fetched_later)
    left = environment.missing_bytes(space_needed(experiment), Path())
    disk = [environment.check_space(left, RESULTS), environment.check_quota(left, RESULTS, user_name())]
    return [*data, *check_tokens(experiment, RESULTS), *installation_checks(), *disk]


def cluster_checks(requests: Sequence[Request]) -> list[Check]:
    """SLURM, and jobs of this folder that are still in its queue."""
    checks = check_cluster(requests, user_name())
    return checks if checks[0].state == "problem" else [*checks, check_left_jobs(Path.cwd())]
