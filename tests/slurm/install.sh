#!/usr/bin/env bash
# Install from Debian what the tests on a real SLURM need; does nothing where it is there, and says why where it cannot.
#
#     tests/slurm/install.sh
#
# Exit code 0: everything is there. 77: this machine cannot have it (not root, no apt, packages not found), with the reason.
set -euo pipefail

declare -A packages=(
    [slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client [slurmdbd]=slurmdbd [munged]=munge
    [mariadbd]=mariadb-server [ip]=iproute2 [/usr/share/modules/init/sh]=environment-modules
)
missing=()
for program in "${!packages[@]}"; do
    command -v "$program" >/dev/null || [ -e "$program" ] || missing+=("${packages[$program]}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

refuse() { echo "tests/slurm: ${missing[*]}: $1; the tests on SLURM are skipped" >&2; exit 77; }
[ "$(id -u)" = 0 ] || refuse "missing, and only root can install them"
command -v apt-get >/dev/null || refuse "missing, and there is no apt-get to install them"

# No service is started by the installation: the tests start their own, with their own state.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
echo "tests/slurm: installing ${missing[*]}" >&2
said=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq --yes --no-install-recommends "${missing[@]}"; } >"$said" 2>&1; then
    tail -n 20 "$said" >&2
    refuse "apt-get could not install them"
fi
rm -f "$said"
