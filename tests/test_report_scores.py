"""What the report says of CORE, of parts and measures, of the same questions, of several runs, of reinforcement learning and of bad steps."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_checker import checked
from report_files import answered, attempt, core_score, drawn_once, finished_run, inputs_of, manifest, pages, score, together, training

from nanochat.artifacts import write_json, write_text
from nanochat.errors import UserError
from nanochat.eval.chatcore import chatcore
from nanochat.report import figures
from nanochat.report.compare import comparison_section
from nanochat.report.core import _side_by_side as side_by_side
from nanochat.report.metrics import metric_rows
from nanochat.report.published import D20, D20_CORE, GPT2
from nanochat.report.training import curves


@pytest.fixture(scope="module", autouse=True)
def _drawn_once() -> Iterator[None]:
    with drawn_once():
        yield


def with_scores(files: dict[str, list[Path]], *more: Path) -> dict[str, list[Path]]:
    """The files of a run and further scores."""
    return {**files, "scores": [*dict.fromkeys([*files["scores"], *more])]}


def table(markdown: str, beginning: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table whose header begins so."""
    lines = markdown[markdown.index(beginning) :].split("\n\n")[0].splitlines()[2:]
    return {row[0]: row[1:] for line in lines for row in [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("| "))]]}


# --- scores of earlier models -----------------------------------------------------------------------------------------


def test_scores_of_an_earlier_model_are_marked_and_count_nowhere(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert "earlier model" not in pages(files)[0] and table(pages(files)[0], "| Metric | BASE")["ChatCORE-5"][2].startswith("0.0993")
    core = core_score(tmp_path, "tiny", files["run_manifests"][0], model_sha256="0" * 64)
    for task in ("mmlu", "gsm8k"):
        answered(score(tmp_path, "tiny", "sft", task, files["run_manifests"][2], model_sha256="0" * 64), [True] * 20)
    markdown = pages(with_scores(files, core))[0]
    rows = table(markdown, "| Metric | BASE")
    assert rows["MMLU"][2] == "1.0000 (earlier model)" and rows["CORE"][0] == "0.1050 (earlier model)" and rows["ARC-Easy"][2] == "0.4000 (0.370-0.440)"
    assert rows["ChatCORE-5"][2] == "-" and "SFT: no current score of MMLU, GSM8K" in markdown
    folder = tmp_path / "results/tiny/scores/sft"
    said = f"scores mmlu, gsm8k of SFT, run tiny: of an earlier SFT than the one shown; build it with `snakemake --cores all {folder}/{{mmlu,gsm8k}}.json`"
    assert said in markdown
    assert "## CORE" not in markdown and table(markdown, "| Model | Phase |")["tiny"][1:4] == ["0.4000", "0.3000", "0.1000"]  # without MMLU and GSM8K


def test_scores_of_a_stage_that_is_trained_again_are_marked(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert "SFT:\n" in pages(files)[0][: pages(files)[0].index("## Scores in detail")]
    files["run_manifests"][2].unlink()
    markdown = pages(files)[0]
    assert "SFT:\n" not in markdown[: markdown.index("## Scores in detail")], "samples of the earlier model"
    assert table(markdown, "| Metric | BASE")["MMLU"][2] == "0.3100 (earlier model)"
    assert "of SFT, run tiny: of an earlier SFT; the present one has not finished; build it with" in markdown
    assert "- **ChatCORE-5**: not available" in markdown
    only = pages({**files, "scores": files["scores"][:1]})[0]
    assert "- **ChatCORE-5**: not available (every score is of an earlier model)" in only and "Not available: no model shown has been evaluated." in only


@pytest.mark.parametrize("wrong", [{"score": "high"}, {"score": math.nan}, {"interval": [0.1]}, {"interval": [0.1, "x"]}, {"baseline": "x"}])
def test_a_score_that_is_no_number_is_one_sentence(tmp_path: Path, wrong: dict[str, object]) -> None:
    files = finished_run(tmp_path)
    path = score(tmp_path, "tiny", "sft", "mmlu", files["run_manifests"][2])
    write_text(path, json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(UserError, match=re.escape(f"{path}: score=")):
        inputs_of(files)


@pytest.mark.parametrize(("name", "content"), [("samples.json", "{}"), ("samples.json", '[{"prompt": "Hello"}]'), ("metrics.jsonl", "[1]\n")])
def test_a_file_of_another_shape_is_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    files = finished_run(tmp_path)
    write_text(path := files["run_manifests"][0].with_name(name), content)
    with pytest.raises(UserError, match=re.escape(f"{path}: ") + ".*; delete it"):
        inputs_of(files)


# --- CORE ------------------------------------------------------------------------------------------------------------


def test_core_stands_in_the_summary_and_task_by_task_beside_the_published_run(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    markdown, html = pages(with_scores(files, core_score(tmp_path, "tiny", files["run_manifests"][0])))
    assert table(markdown, "| Metric | BASE")["CORE"][0] == "0.1050 (0.080-0.120)"
    rows = table(markdown, "| Task | tiny, BASE | d20, Dec 2025, published by others |")
    assert rows["CORE"] == ["0.1050 (0.080-0.120)", "0.2054"]
    assert rows["`boolq`"][1] == "-0.2329" and len(rows) == 23
    assert "| `jeopardy` | multiple choice | 10 | 500 | 0.2575 | 0.2000 - 0.5000 | 0.25 | 0.0100 | 1.5 |" in markdown
    assert 'id="core"' in html and checked(html).problems == []


def test_limit_of_core_is_for_each_of_its_tasks(tmp_path: Path) -> None:
    """500 rows of each task: a limit of 500 left rows out, one of 501 did not."""
    files = finished_run(tmp_path)
    for limit, is_sample in ((500, True), (501, False)):
        markdown = pages(with_scores(files, core_score(tmp_path, "tiny", files["run_manifests"][0], limit=limit)))[0]
        assert ("samples: 11,000 of CORE." in markdown) == is_sample and ("0.1050 (sample of 11,000)" in markdown) == is_sample


def test_core_over_fewer_tasks_is_another_metric_and_names_what_is_missing(tmp_path: Path) -> None:
    whole, part = finished_run(tmp_path, "whole"), finished_run(tmp_path, "part")
    scores = [core_score(tmp_path, "whole", whole["run_manifests"][0]), core_score(tmp_path, "part", part["run_manifests"][0], tasks=14)]
    markdown = pages(with_scores(together(whole, part), *scores))[0]
    assert "CORE-14 of BASE, run part: over 14 of 22 tasks; not there: agi_eval_lsat_ar, " in markdown
    rows = table(markdown, "| Metric | whole | part |")
    assert rows["CORE"] == ["0.1050 (BASE, 0.080-0.120)", "-"] and rows["CORE-14"] == ["-", "0.0650 (BASE, 0.080-0.120)"]
    beside = table(markdown, "| Model | Phase | CORE |")
    assert beside["GPT-2 1.5B (published by others)"][1] == "0.2565"
    assert "part | BASE" not in markdown  # CORE-14 stands beside no CORE


def test_numbers_of_other_tasks_samples_or_versions_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    """CORE over 14 tasks each: as it is, of a sample (500 rows of each task), of another version, and over other tasks."""
    names = ("one", "two", "three", "four")
    runs = {name: finished_run(tmp_path, name) for name in names}
    changes: dict[str, dict[str, object]] = {"two": {"limit": 500}, "three": {"version": "2"}}
    cores = [core_score(tmp_path, name, runs[name]["run_manifests"][0], tasks=14, **changes.get(name, {})) for name in names]
    content = json.loads(cores[3].read_text(encoding="utf-8"))
    write_json(cores[3], {**content, "tasks": [*content["tasks"][:13], {**content["tasks"][13], "label": "boolq"}]})
    score(tmp_path, "two", "sft", "mmlu", runs["two"]["run_manifests"][2], version="2")
    scores = inputs_of(with_scores(together(*runs.values()), *cores)).scores
    found = dict(metric_rows({(item.run, item.task): item for item in scores}))
    assert [(key, list(of)) for key, of in found.items() if "MMLU" in key] == [("MMLU (version 1)", ["one", "three", "four"]), ("MMLU (version 2)", ["two"])]
    dyck, boolq = "CORE-14 (with bigbench_dyck_languages,", "CORE-14 (with boolq,"
    names_of_core = [
        f"{dyck} all rows, version 1)",
        f"{dyck} sample of 500 a task, version 1)",
        f"{dyck} all rows, version 2)",
        f"{boolq} all rows, version 1)",
    ]
    assert [(key, list(of)) for key, of in found.items() if "CORE" in key] == [(key, [run]) for key, run in zip(names_of_core, names, strict=True)]
    table_of_core = side_by_side([item for item in scores if item.task == "core"])
    assert [row[0].text for row in table_of_core.rows[:4]] == names_of_core
    assert [key for key in found if "ARC" in key] == ["ARC-Challenge", "ARC-Easy"]  # nothing differs, nothing is told


def test_core_that_could_not_be_computed_says_why(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    failed = core_score(tmp_path, "tiny", files["run_manifests"][0], tasks=0, score=None, interval=None, unavailable="the logits are NaN", name="CORE")
    markdown = pages(with_scores(files, failed))[0]
    assert "CORE of BASE, run tiny: not available (the logits are NaN)." in markdown


# --- parts, measures, contamination ------------------------------------------------------------------------------------


def test_subjects_and_further_measures_are_shown_with_their_intervals(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    sft = files["run_manifests"][2]
    parts = [{"name": "high_school_physics", "score": 0.25, "n": 8, "interval": [0.07, 0.59]}, {"name": "virology", "score": None, "n": 0, "interval": None}]
    metrics = {"pass@1": {"score": 0.1, "n": 164, "interval": [0.06, 0.16]}, "pass@8": {"score": 0.2, "n": 164, "interval": [0.14, 0.27]}}
    mmlu = score(tmp_path, "tiny", "sft", "mmlu", sft, parts=parts)
    humaneval = score(tmp_path, "tiny", "sft", "humaneval", sft, metrics=metrics, interval_method="bootstrap")
    markdown, html = pages(with_scores(files, mmlu, humaneval))
    assert "| high school physics | 0.2500 (0.070-0.590) | 8 |" in markdown and "| virology | - | 0 |" in markdown
    assert "<summary>MMLU in 2 parts</summary>" in html
    assert "| HumanEval | pass@8 | - | - | 0.2000 (0.140-0.270) | - | 164 |" in markdown
    assert "| HumanEval | SFT | 0.1000 | 0.0700 - 0.1400 (bootstrap) |" in markdown


def test_evaluations_in_the_training_text_are_counted_and_a_wrong_table_is_refused(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    path = tmp_path / "results/contamination/tiny.json"
    rows = [{"task": "mmlu", "split": "test", "items": 200, "items_with_overlap": 3}, {"task": "gsm8k", "items": 100, "items_with_overlap": 50}]
    write_json(path, {"rows": rows})
    markdown = pages({**files, "contamination": [path]})[0]
    assert "| tiny | GSM8K | - | 100 | 50 | 50.0% |\n| tiny | MMLU | test | 200 | 3 | 1.5% |" in markdown
    assert "Evaluations in the training text" not in pages(files)[0]
    write_json(path, {"rows": [{"task": "mmlu"}]})
    with pytest.raises(UserError, match="each row needs task, items and items_with_overlap"):
        inputs_of({**files, "contamination": [path]})
    missing = inputs_of({**files, "contamination": [tmp_path / "results/contamination/other.json"]}).missing
    assert [item.what for item in missing] == ["contamination of other"]


# --- the same questions ------------------------------------------------------------------------------------------------


def test_phases_and_runs_are_compared_on_the_same_questions(tmp_path: Path) -> None:
    first, second = finished_run(tmp_path, "first"), finished_run(tmp_path, "second")
    right = {"first": [True] * 5 + [False] * 15, "second": [True] * 15 + [False] * 5}
    for files, run in ((first, "first"), (second, "second")):
        answered(score(tmp_path, run, "sft", "mmlu", files["run_manifests"][2]), right[run])
        rows = [{"index": index, "score": 2.0 + index / 10 + 0.1 * (run == "first"), "bytes": 10} for index in range(20)]
        bpb = score(tmp_path, run, "base", "bpb", files["run_manifests"][0], interval=None, baseline=None, n=20, items="bpb.items.jsonl")
        write_text(bpb.parent / "bpb.items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        last = score(tmp_path, run, "sft", "bpb", files["run_manifests"][2], interval=None, baseline=None, n=20, items="../base/bpb.items.jsonl")
        files["scores"].append(last)
    earlier = answered(score(tmp_path, "second", "mid", "mmlu", second["run_manifests"][1]), right["first"])
    markdown = pages(with_scores(together(first, second), earlier))[0]
    assert "| MMLU | first, SFT | second, SFT | 20 | +0.5000 |" in markdown and "| 0.0020 (better) |" in markdown
    assert "| MMLU | second, MID | second, SFT | 20 | +0.5000 |" in markdown
    for phase in ("BASE", "SFT"):
        rows = table(markdown[markdown.index(f"{phase}: runs against first") :], "| Task | From | To |")
        assert rows["bits per byte"] == [f"first, {phase}", f"second, {phase}", "20", "-0.1000", "-0.1000 to -0.1000", "\\< 0.0001 (better)"]
    assert "ARC-Easy | first, SFT" not in markdown
    assert "- Not compared: ARC-Challenge of first SFT and second SFT, " in markdown and "no answers to single rows beside a score" in markdown


def test_answers_to_different_versions_or_rows_are_not_compared_and_damage_is_named(tmp_path: Path) -> None:
    files = [finished_run(tmp_path, run) for run in ("first", "second")]
    paths = [answered(score(tmp_path, run, "sft", "mmlu", of["run_manifests"][2]), [True, False]) for run, of in zip(("first", "second"), files, strict=True)]

    def said(*changes: dict[str, object]) -> str:
        for path, change in zip(paths, changes, strict=True):
            write_json(path, {**json.loads(path.read_text()), **change})
        return str(comparison_section(inputs_of(together(*files)), 0.0))

    assert "Cell(text='first, SFT', note='')" in said({}, {}) and "MMLU of first" not in said({}, {})
    other = said({}, {"version": "2", "settings": {"form": "chat"}})
    assert "'first, SFT'" not in other and "Not compared: MMLU of first SFT and second SFT: graded by versions 1 and 2 of the task" in other
    assert "Cell(text='MMLU', note='other form: text and chat')" in said({"version": "2", "settings": {"form": "text"}}, {})
    paths[1].with_suffix(".items.jsonl").unlink()
    assert "sft/mmlu.items.jsonl is gone, though the score names it; delete" in said({}, {})
    answered(paths[1], [True, False])
    paths[0].with_suffix(".items.jsonl").write_text('{"index": 0, "right": true}\n{"ind')
    with pytest.raises(UserError, match=r"mmlu\.items\.jsonl: not the answers to a task"):
        comparison_section(inputs_of(together(*files)), 0.0)
    paths[0].with_suffix(".items.jsonl").write_text('{"index": 0, "right": true}\n')
    with pytest.raises(UserError, match=r"mmlu\.items\.jsonl: 1 answers, the score is of 2; delete it and .*mmlu\.json"):
        comparison_section(inputs_of(together(*files)), 0.0)


# --- published models ----------------------------------------------------------------------------------------------------


def test_published_chatcore_follows_from_the_published_scores() -> None:
    """ChatCORE as its reports state it: of five tasks in October, of six in November and December 2025."""
    stated = {("Oct 2025", "mid"): (0.0730, None), ("Oct 2025", "sft"): (0.0884, None), ("Nov 2025", "mid"): (0.1244, 0.2703)}
    stated |= {("Nov 2025", "sft"): (0.1352, 0.2793), ("Dec 2025", "mid"): (0.1167, 0.2620), ("Dec 2025", "sft"): (0.1231, 0.2660)}
    found = {(model.name.removeprefix("d20, "), model.phase): model.scores for model in D20}
    for key, means in stated.items():
        for name, value in zip(("ChatCORE-5", "ChatCORE-6"), means, strict=True):
            mean = chatcore(name, {task: (score, None) for task, score in found[key].items()}).value
            assert mean == (None if value is None else pytest.approx(value, abs=1e-4)), (key, name)
    assert sum(D20_CORE.values()) / 22 == pytest.approx(found["Dec 2025", "base"]["core"], abs=1e-4)
    assert [model.scores["core"] for model in GPT2] == [0.1139, 0.1849, 0.2146, 0.2565]


def test_published_scores_are_marked_and_shown_only_beside_the_same_metric(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert table(pages(files)[0], "| Model | Phase | ARC-Easy |")["tiny"][-2:] == ["0.0993", "-"]
    limited = score(tmp_path, "tiny", "sft", "mmlu", files["run_manifests"][2], limit=200)
    markdown, html = pages(with_scores(files, limited))
    rows = table(markdown, "| Model | Phase | ARC-Easy |")
    assert rows["tiny"][:4] == ["SFT", "0.4000", "0.3000", "0.3100 (sample of 200)"]
    assert rows["tiny"][-2:] == ["0.0993 (sample)", "-"]
    assert rows["d20, Dec 2025 (published by others)"][-2:] == ["0.1231", "0.2660"]  # of SFT, the last of its rows
    assert "GPT-2" not in table(markdown, "| Model | Phase | ARC-Easy |") and "published by others" in html
    no_chat = {**files, "scores": [path for path in files["scores"] if path.stem == "bpb"]}
    assert "published" not in pages(no_chat)[0]


def test_a_phase_has_one_colour_whatever_phases_a_run_has() -> None:
    drawn = figures.bars("x", [figures.Bar("MMLU", "SFT", 0.3), figures.Bar("MMLU", "MID", 0.3)], x_label="score", series=("BASE", "MID", "SFT"))
    assert [f"var(--series-{number})" in drawn for number in (1, 2, 3)] == [False, True, True]


# --- several runs ---------------------------------------------------------------------------------------------------------


def test_eight_runs_stay_readable(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path, f"run{number}") for number in range(8)]
    core = core_score(tmp_path, "run0", runs[0]["run_manifests"][0])
    markdown, html = pages(with_scores(together(*runs), core))
    page = checked(html)
    assert page.problems == [] and page.open == [] and len(page.ids) == len(set(page.ids))
    rows = table(markdown, "| Metric | run0 | run1 |")
    assert len(rows["MMLU"]) == 8 and rows["CORE"][:2] == ["0.1050 (BASE, 0.080-0.120)", "-"], "beside scores of SFT"
    assert all(f"<summary>Phases of run run{number}</summary>" in html and f"<summary>Run run{number}</summary>" in html for number in range(8))
    assert html.count("<table>") < 100 and len(html) < 2_000_000
    before_folds = html[html.index('id="samples"') :].split("<details>")[0]
    assert all(f"<span>run{number}, SFT</span>" in before_folds for number in range(8))


def test_samples_of_all_phases_stand_side_by_side(tmp_path: Path) -> None:
    html = pages(finished_run(tmp_path))[1]
    (block,) = re.findall(r'<div class="samples">.*?</div></div>', html[html.index('id="samples"') : html.index('id="scores"')].replace("\n", ""))
    assert re.findall(r"<span>(\w+)</span>", block) == ["BASE", "MID", "SFT"]


def test_cost_of_evaluations_and_lost_time_are_counted(tmp_path: Path) -> None:
    """8 A100 for an hour that was lost and an hour that was not, and 36 s of one A100 for a score: 16 x 1.79 and 0.01 x 1.79."""
    files = finished_run(tmp_path)
    gpu = {"device": "cuda", "device_name": "NVIDIA A100-SXM4-80GB", "world_size": 8}
    base = training(tmp_path, "tiny", "base", {}, attempts=[attempt("failed", 3600.0, **gpu), attempt(wall_s=3600.0, **gpu)])
    one = score(tmp_path, "tiny", "base", "bpb", base, seconds=36.0, provenance={**gpu, "world_size": 1})
    markdown = pages({**files, "run_manifests": [base], "scores": [one]})[0]
    assert "| tiny | base_train | 2 | 1 | 2h00m | 1h00m | $28.64 (16 GPU-hours) |" in markdown
    assert "| tiny | evaluate | 1 | 0 | 36 s | - | $0.02 (0.01 GPU-hours) |" in markdown
    assert "- Code: 0123456789ab on main\n" in markdown and "- Cost: $28.64 (16 GPU-hours)\n" in markdown


# --- reinforcement learning, bad steps --------------------------------------------------------------------------------------


def with_metrics(path: Path, rows: list[dict[str, object]]) -> Path:
    """A stage that has logged these lines besides."""
    log = path.parent / "metrics.jsonl"
    write_text(log, log.read_text(encoding="utf-8") + "".join(json.dumps(row) + "\n" for row in rows))
    return path


def reinforced(root: Path, run: str) -> Path:
    """A finished RL stage: rewards rise from .1 to .5, pass@k is measured at steps 1 and 40."""
    rows: list[dict[str, object]] = [{"step": step, "reward": 0.1 + 0.01 * (step - 1), "sequence_tokens": 30} for step in range(1, 41)]
    rows += [{"step": step, **{f"pass@{k}": 1 - (1 - rate) ** k for k in range(1, 9)}} for step, rate in ((1, 0.1), (40, 0.4))]
    path = with_metrics(training(root, run, "rl", {}), rows)
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "counts": {**content["counts"], "final_loss": 0.01}})
    return path


def test_reinforcement_learning_has_its_curves_its_column_and_no_loss_in_nats(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    rl = reinforced(tmp_path, "tiny")
    solved = score(tmp_path, "tiny", "rl", "gsm8k", rl, score=0.25)
    markdown, html = pages({**with_scores(files, solved), "run_manifests": [*files["run_manifests"], rl]})
    assert table(markdown, "| Metric | BASE")["GSM8K"][2:] == ["0.0500 (0.020-0.090)", "0.2500 (0.020-0.090)"]
    assert "| mean reward, of the first and the last tenth of the steps | 0.115, 0.475 |" in markdown
    assert "| pass@1 on validation, first and last | 0.100, 0.400 |" in markdown
    section = html[html.index('id="rl"') : html.index('id="data"')]
    assert (
        "Mean reward of the sampled answers, over tokens, RL." in section and "Share of held-out problems" in section and "nats per token, over" not in section
    )


@pytest.mark.parametrize(
    ("skipped", "said"),
    [
        (40, "Run tiny: nothing was learnt, and the weights are those it began with: all 40 steps were skipped, since the answers to each problem"),
        (3, "Run tiny: 3 of 40 steps were skipped, since the answers to each problem were all rewarded alike"),
        (0, ""),
    ],
)
def test_reinforcement_learning_without_anything_to_learn_from_says_so(tmp_path: Path, skipped: int, said: str) -> None:
    path = reinforced(tmp_path, "tiny")
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "counts": {**content["counts"], "skipped_steps": skipped}})
    files = finished_run(tmp_path)
    markdown = pages({**files, "run_manifests": [*files["run_manifests"], path]})[0]
    assert said in markdown and ("were skipped, since" in markdown) == (skipped > 0) and ("mean reward 0.295" in markdown) == (skipped == 40)
    assert ("RL learnt nothing" in markdown) == (skipped == 40)


def test_pass_at_k_shows_every_k_of_one_run_and_the_ends_of_several(tmp_path: Path) -> None:
    runs = [inputs_of({**finished_run(tmp_path, run), "run_manifests": [reinforced(tmp_path, run)]}).trainings[0] for run in ("one", "two")]
    for trainings, names in ((runs[:1], {f"pass@{k}" for k in range(1, 9)}), (runs, {f"{run}, pass@{k}" for run in ("one", "two") for k in (1, 8)})):
        choice = curves(trainings, "rl")
        assert choice is not None
        svg = choice.options[0][1].figures[-1].svg
        assert set(re.findall(r">((?:\w+, )?pass@\d)<", svg)) == names


def test_bad_steps_are_shown_once_with_what_was_done(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert "bad step" not in pages(files)[0]
    bad: dict[str, object] = {"step": 7, "bad_step": "non_finite", "why": "the loss is nan", "action": "skipped", "rows": [1]}
    with_metrics(files["run_manifests"][0], [bad, bad, {**bad, "step": 9, "bad_step": "spike", "why": "loss 9.1 is a spike"}])
    markdown = pages(files)[0]
    assert "2 bad steps: the rows that each held" in markdown
    assert "| tiny | 7 | non finite | skipped | the loss is nan |\n| tiny | 9 | spike | skipped | loss 9.1 is a spike |" in markdown


def test_stages_of_a_half_finished_run_name_their_commands(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    paths = [tmp_path / "results/tiny/chat_rl/manifest.json"]
    markdown = pages(
        {**files, "run_manifests": [*files["run_manifests"], *paths], "tokens": [*files["tokens"], tmp_path / "results/tokens/a.b/c/manifest.json"]}
    )[0]
    assert f"RL of run tiny: not built yet; build it with `snakemake --cores all {paths[0]}`" in markdown
    assert f"build it with `snakemake --cores all {tmp_path}/results/tokens/a.b/c/manifest.json`" in markdown


def test_what_a_model_was_made_from_begins_with_the_model_before(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    training(tmp_path, "tiny", "sft", {"data.0": files["sources"][0], "model": files["run_manifests"][1]})
    assert table(pages(files)[0], "| Made | Identity |")["tiny (SFT)"][1] == "tiny (MID), wikipedia_summaries (sources)"


def test_user_source_states_its_licence(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    mine = manifest(tmp_path / "resources/mine/all", "fetch", config={"user": {"licence": "CC0"}}, counts={"rows": 5})
    assert "| mine | all | CC0 | 5 |" in pages({**files, "sources": [mine]})[0]
