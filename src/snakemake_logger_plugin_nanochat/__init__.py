"""Snakemake logger plugin `nanochat`: ends a dry run with its hours, GPU-hours, price and downloads, and writes plans for `nanochat plan`.

The Snakefile says what is planned (`watch`), Snakemake closes its loggers when all else is said (`LogHandler.close`). Snakemake imports this
module at every start, in every job too: nothing here may be slow, and nothing in it may make a run fail.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import ERROR, LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

if TYPE_CHECKING:
    from nanochat.plan.planner import Planner
    from nanochat.plan.summary import Plan

_watched: "tuple[Any, Planner] | None" = None  # the workflow of this process and its planner


def watch(workflow: Any, planner: "Planner") -> None:
    """Say what this process plans; called by the Snakefile."""
    global _watched
    _watched = (workflow, planner)


def plan_of_run() -> "Plan | None":
    """The plan of the workflow of this process; None before its jobs are known."""
    if _watched is None or _watched[0].dag is None:
        return None
    from nanochat.plan.summary import make_plan
    from snakemake_logger_plugin_nanochat.dag import is_planned, jobs_to_run, names_up_to_date, retries

    workflow, planner = _watched
    if not is_planned(workflow.dag):
        return None
    return make_plan(planner, jobs_to_run(workflow.dag), names_up_to_date(workflow.dag), unnoticed=unnoticed_changes(), retries=retries(workflow))


def unnoticed_changes() -> list[str]:
    """Results that are stale without Snakemake's knowing, a sentence each: the workflow was moved without its memory, then changed."""
    if _watched is None or _watched[0].dag is None or not _watched[0].is_main_process:
        return []
    from nanochat.plan.jobs import unnoticed
    from snakemake_logger_plugin_nanochat.dag import jobs_not_remembered

    return [sentence for job in jobs_not_remembered(_watched[0].dag) if (sentence := unnoticed(job))]


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Flags of the plugin, as --logger-nanochat-FLAG."""

    plan: str = field(default="", metadata={"help": "write the plan of a dry run to this JSON file, and say nothing", "env_var": False, "required": False})


class LogHandler(LogHandlerBase):
    """Speaks after a dry run, of what a real one has not noticed, and beside an error that does not say what to do."""

    full = ""  # what is to be said of a full disk

    def emit(self, record: LogRecord) -> None:
        """Leave every message to Snakemake's own output; an error may get a sentence besides."""
        try:
            if record.levelno >= ERROR and not self.common_settings.dryrun:
                self._explain(record)
        except Exception as error:
            print(f"nanochat: an error could not be explained ({type(error).__name__}: {error})", file=sys.stderr)

    def _explain(self, record: LogRecord) -> None:
        from snakemake_logger_plugin_nanochat.trouble import full_disk, who_works_here

        if getattr(record, "exception", None) == "LockException":
            print(f"nanochat: error: {who_works_here(Path())}", file=sys.stderr, flush=True)
        elif not self.full and (sentence := full_disk(Path())):
            self.full = f"nanochat: error: {sentence}"
            print(self.full, file=sys.stderr, flush=True)
            logging.raiseExceptions = False  # each message would bring a page about the log in .snakemake/log that cannot be written
            if _watched is not None:
                for rule in _watched[0].rules:
                    rule.restart_times = 0

    def close(self) -> None:
        """Say the totals of a dry run, or write its plan; once, though Python closes every handler again at its end."""
        if not getattr(self, "closed", False):
            self.closed = True
            try:
                if self.common_settings.dryrun:
                    self._finish()
                else:
                    _warn(unnoticed_changes())
                    if self.full:  # once more, below the pages about the jobs
                        print(self.full, file=sys.stderr, flush=True)
            except BrokenPipeError:  # the reader has gone
                pass
            except Exception as error:  # a plan that fails must not take the workflow with it
                print(f"nanochat: the totals are not available ({type(error).__name__}: {error})", file=sys.stderr)
        super().close()

    def _finish(self) -> None:
        plan, file = plan_of_run(), getattr(self.settings, "plan", "")
        if plan is None:
            return
        if file:
            from nanochat.plan.text import full

            Path(file).write_text(json.dumps({"plan": plan.to_dict(), "text": full(plan)}), encoding="utf-8")
        elif "all" not in {str(quiet).rpartition(".")[2].lower() for quiet in self.common_settings.quiet or ()}:
            from nanochat.plan.text import totals

            if plan.jobs:
                print(f"\n{totals(plan)}", flush=True)
            else:
                _warn(plan.warnings)

    @property
    def writes_to_stream(self) -> bool:
        """Whether it replaces Snakemake's own output."""
        return False

    @property
    def writes_to_file(self) -> bool:
        """Whether it keeps a log."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether it wants Snakemake's filter."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Whether it wants Snakemake's formatter."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """Whether Snakemake should draw its rules."""
        return False


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"nanochat: warning: {sentence}", file=sys.stderr, flush=True)
