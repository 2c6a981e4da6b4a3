# make run    everything from an empty machine: install, train a small chat model on the CPU, talk to it (minutes)
# make test   install, then every check and test that this machine can run; as root with apt that includes a real SLURM
# make check  the fast part of it: lint, format, types
# make chaos  kill trainings at 200 random moments, compare what they make in the end (a quarter of an hour)
# make clean  remove the installation and caches; what was fetched and trained stays (resources/, results/)

BIN := .venv/bin
RUN ?= quickstart
PROMPT ?= Who are you?
CORES ?= all
WORKERS ?= 3
KILLS ?= 200

.PHONY: help run test check chaos clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# pip reads the lock as constraints: no version moves, and torch is never replaced by another build of itself.
.venv/installed: pyproject.toml envs/lock.txt
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11) ''; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: Python 3.11 or newer is needed; install it, or say make PYTHON=/path/to/python" >&2; exit 2; \
	fi; \
	if ! { [ -x $(BIN)/pip ] || "$$python" -m venv .venv; }; then \
	    rm -rf .venv; echo "make: $$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; \
	fi
	@echo "Installing into .venv (minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint envs/lock.txt --editable '.[dev]'
	@touch $@

run: .venv/installed
	@$(BIN)/snakemake --cores $(CORES) --quiet host rules
	@printf '\n> %s\n' "$(PROMPT)"
	@$(BIN)/nanochat chat --run $(RUN) -p "$(PROMPT)"
	@printf '\nReport: results/report/report.html    Go on: %s\n' "$(BIN)/nanochat chat --run $(RUN)"

check: .venv/installed
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/snakemake --lint

# 77: a machine that cannot have SLURM, the reason was said; the tests that need it are skipped
# Thousands of processes are started: where Python is told to keep nothing that it compiles, each would compile the sources again
test: check
	@tests/slurm/install.sh || [ $$? = 77 ]
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --durations 40 --durations-min 5

chaos: .venv/installed
	@$(BIN)/python tests/chaos.py --kills $(KILLS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
