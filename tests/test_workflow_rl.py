"""Reinforcement learning in the workflow: a section that a run asks for, a phase of its own, and nothing else is made again."""

import json
import re

from workspace import Workspace

from nanochat.artifacts import read_json

CHAT_RL = {
    "tasks": [{"task": "arithmetic", "rows": 16}],
    "examples_per_step": 8,
    "samples": 2,
    "max_new_tokens": 8,
    "validation_rows": 4,
    "validation_samples": 2,
}


def test_a_run_that_asks_for_it_gets_its_phase_and_nothing_else_is_made_again(workspace: Workspace) -> None:
    workspace.configure(lambda content: content["runs"]["tiny"].update(chat_rl=CHAT_RL))
    workspace.configure(lambda content: content["runs"]["tiny"]["evaluate"]["arithmetic"].update(phases=["sft", "rl"]))
    assert workspace.plan() == {"chat_rl tiny", "evaluate tiny rl bpb", "evaluate tiny rl arithmetic", "report"}
    plan = json.loads(workspace.nanochat("plan", "--json").stdout)
    [job] = [job for job in plan["jobs"] if job["stage"] == "chat_rl"]
    assert job["hours"] and job["steps"] == 2 and job["reason"] == "never run"
    workspace.build()
    counts = read_json(workspace.path("results/tiny/chat_rl/manifest.json"))["counts"]
    assert counts["steps"] == 2 and counts["problems"] == 16 and 0 <= counts["final_pass@1"] <= 1
    score = read_json(workspace.path("results/tiny/scores/rl/arithmetic.json"))
    assert score["phase"] == "rl" and score["n"] == 4
    page = workspace.path("results/report/report.html").read_text(encoding="utf-8")
    assert "Reinforcement learning (RL)" in page and re.search(r"<th[^>]*>RL</th>", page)
    assert workspace.plan() == set()
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_rl"].update(rollout_rows=32))
    assert "chat_rl tiny" in workspace.plan(), "how many answers are drawn at a time may change a token by rounding"
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_rl"].update(rollout_rows=128, validate_every=1))
    assert workspace.plan() == set()
