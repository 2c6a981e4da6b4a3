"""The report shows the numbers of the JSON files it was handed, says what is missing, and needs no network, script or torch."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_checker import checked
from report_files import EVALUATION, PHASES, attempt, drawn_once, finished_run, inputs_of, manifest, pages, score, together, training
from workspace import Workspace

from nanochat.artifacts import write_json, write_text
from nanochat.config import Report
from nanochat.errors import UserError
from nanochat.hardware import price_of
from nanochat.history import cost_of
from nanochat.report import figures, graph, render, text
from nanochat.report.axes import series, thinned
from nanochat.report.build import build_document
from nanochat.report.document import Cell, Code, Document, Figure, Paragraph, Samples, Section, Table
from nanochat.report.figures import bars as draw_bars
from nanochat.report.figures import curves
from nanochat.report.inputs import Training, read_inputs
from nanochat.report.metrics import chatcore, title
from nanochat.report.training import _rows as training_rows
from nanochat.report.training import curves as choice_of_curves
from nanochat.stages import report


@pytest.fixture(scope="module", autouse=True)
def _drawn_once() -> Iterator[None]:
    with drawn_once():
        yield


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(markdown, html) of one finished run, for tests that only look."""
    return pages(finished_run(tmp_path_factory.mktemp("finished")))


def summary_rows(markdown: str) -> dict[str, list[str]]:
    """Metric -> cells of the first summary table."""
    lines = markdown[markdown.index("| Metric | BASE | MID | SFT | RL |") :].split("\n\n")[0].splitlines()[2:]
    return {row[0]: row[1:] for line in lines for row in [[cell.strip() for cell in line.strip("| ").split("|")]]}


# --- the page itself -------------------------------------------------------------------------------------------------


def test_html_is_well_formed_and_ids_are_unique_and_links_resolve(rendered: tuple[str, str]) -> None:
    page = checked(rendered[1])
    assert page.problems == [] and page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.fragments and all(link.startswith("#") and link[1:] in page.ids for link in page.fragments)


def test_html_makes_no_request_and_runs_no_script(rendered: tuple[str, str]) -> None:
    html = rendered[1]
    page = checked(html)
    assert not {"script", "iframe", "object", "embed", "img", "link", "form"} & set(page.tags)
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_checker_sees_a_request_and_an_unclosed_tag() -> None:
    page = checked('<p><img src="https://a.example/x.png" onerror="x()"><b></p>')
    assert len(page.problems) >= 3


def test_same_numbers_give_the_same_bytes() -> None:
    lines = [figures.Curve("a", (0, 1, 2), (3, 2, 1)), figures.Curve("b", (0, 1), (2, 1))]
    bars = [figures.Bar("g", "s", 0.5, (0.4, 0.6), 0.25), figures.Bar("g", "t", 0.4, published=True)]
    for draw, data in ((curves, lines), (draw_bars, bars)):
        first, second = (draw("x", data, x_label="steps", **({"y_label": "loss"} if draw is curves else {})) for _ in range(2))
        assert first == second


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert pages(files) == pages(files)


def test_text_from_models_is_shown_and_never_interpreted(rendered: tuple[str, str]) -> None:
    markdown, html = rendered
    assert "&lt;b&gt;sft&lt;/b&gt; | `Paris`" in html
    assert "````text\n<b>sft</b> | ``` x\n````" in render.markdown(Document("t", "", (Section("s", "s", (Samples("p", (("SFT", "<b>sft</b> | ``` x"),)),)),)))
    assert "```text\n<b>sft</b> | `Paris`\n```" in markdown


def test_markup_in_names_is_escaped_in_both_formats() -> None:
    blocks = (Paragraph("<script> *x* `a < b`"), Table(("a|b",), ((Cell("x|y", "<i>"),),)), Code("</pre><script>"))
    document = Document("<title>", "", (Section("s", "s", blocks),))
    html, markdown = render.html(document), render.markdown(document)
    assert "<script>" not in html and "<code>a &lt; b</code>" in html and "&lt;title&gt;" in html
    assert "x\\|y (\\<i>)" in markdown and "\\<script> \\*x\\* `a < b`" in markdown


def test_markdown_tables_have_one_line_per_row_and_equal_columns(rendered: tuple[str, str]) -> None:
    markdown = rendered[0]
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables) > 5
    for table in tables:
        columns = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
        assert len(set(columns)) == 1 and re.fullmatch(r"[|:-]+", table[1]), table


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_summary_table_holds_the_scores_of_the_files_and_a_dash_elsewhere(rendered: tuple[str, str]) -> None:
    rows = summary_rows(rendered[0])
    assert rows["ARC-Easy"] == ["-", "-", "0.4000 (0.370-0.440)", "-"]
    assert rows["bits per byte (lower is better)"] == ["1.7312", "-", "-", "-"]
    assert next(iter(rows)).startswith("bits per byte") and list(rows)[-1] == "ChatCORE-6"


def test_chatcore_is_the_centered_mean_of_its_named_tasks(tmp_path: Path) -> None:
    """((.40-.25)/.75 + (.30-.25)/.75 + (.31-.25)/.75 + .05 + .10) / 5 = (.2 + .066667 + .08 + .15) / 5 = .099333

    Intervals of .03 below and .04 above, the first three stretched by 4/3: sqrt(3 x .04^2 + 2 x .03^2) / 5 = .0162 below, .0217 above.
    """
    files = finished_run(tmp_path)
    rows = summary_rows(pages(files)[0])
    assert rows["ChatCORE-5"] == ["-", "-", "0.0993 (0.083-0.121)", "-"]
    assert rows["ChatCORE-6"] == ["-", "-", "-", "-"]
    assert "no score of SpellingBee" in pages(files)[0]
    scores = {item.task: item for item in inputs_of(files).scores if item.phase == "sft"}
    assert chatcore("ChatCORE-5", scores).value == pytest.approx(0.0993333, abs=1e-6)


def test_unavailable_score_is_named_with_its_reason_and_never_zero(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    model = files["run_manifests"][2]
    score(tmp_path, "tiny", "sft", "humaneval", model, score=None, interval=None, correct=None, unavailable="no sandbox on this machine")
    markdown, html = pages(files)
    assert summary_rows(markdown)["HumanEval"] == ["-", "-", "-", "-"]
    assert "HumanEval of SFT: not available (no sandbox on this machine)" in markdown
    assert summary_rows(markdown)["ChatCORE-5"] == ["-", "-", "-", "-"]
    assert "no sandbox on this machine" in html


def test_graded_answers_are_shown(rendered: tuple[str, str]) -> None:
    html = rendered[1]
    assert "<summary>Answers to MMLU</summary>" in html and "2 &lt; 3?" in html and "SFT, wrong" in html


def test_sampled_rows_are_said_beside_the_numbers(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert "Not all rows were used" not in pages(files)[0]
    score(tmp_path, "tiny", "sft", "mmlu", files["run_manifests"][2], limit=200)
    markdown = pages(files)[0]
    assert "Not all rows were used, but samples: 200 of MMLU." in markdown and "- **ChatCORE-5**: 0.0993 (SFT, run tiny, of samples)\n" in markdown
    score(tmp_path, "tiny", "sft", "mmlu", files["run_manifests"][2], limit=500)  # the score's n is 200: all rows there are
    assert "Not all rows were used" not in pages(files)[0]


def test_minimum_and_final_validation_come_from_the_metrics(rendered: tuple[str, str]) -> None:
    markdown = rendered[0]
    final = text.score(2.0 + 1 / 41)
    assert f"| minimum validation bits per byte | {final} |" in markdown
    assert "| tokens per parameter | 0.00166 |" in markdown and "| ranks (processes) | 1 |" in markdown
    assert "| parameters | 12,345,678 |" in markdown and "| steps | 40 |" in markdown and "| tokens per second, median | 1,000 |" in markdown


def test_logged_again_after_a_resume_a_step_counts_once(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    path = files["run_manifests"][0].parent / "metrics.jsonl"
    write_text(path, path.read_text() + '{"step": 40, "val_bpb": 1.5}\n{"step": 41, "val_b')
    steps, values = inputs_of(files).trainings[0].series("val_bpb")
    assert steps == (0.0, 20.0, 40.0) and values[-1] == 1.5


def test_licence_rows_and_cropped_share_are_shown(rendered: tuple[str, str]) -> None:
    markdown = rendered[0]
    assert "| wikipedia_summaries | all | CC BY-SA 3.0 | train 9,533, validation 500 |" in markdown
    assert "| tiny.tiny | train | 1 | 90 | 60.0 kB | 100 | 20,000 | 15,000 | 3.00 | 25.0% |" in markdown


def test_what_a_fetch_left_out_is_shown_where_it_left_something_out(rendered: tuple[str, str], tmp_path: Path) -> None:
    assert "Not taken as it stood" not in rendered[0]
    counts = {"rows": {"train": 5}, "documents_read": 1_200, "invalid_documents": 0, "duplicates_removed": 1_100, "documents_cut": 3}
    markdown, _ = pages({**finished_run(tmp_path), "sources": [manifest(tmp_path / "resources/mine/all", "fetch", counts=counts)]})
    assert "- mine, of 1,200 documents read: 1,100 left out, repeated; 3 longer than 100,000 characters, cut into pieces\n" in markdown


def test_tokenizer_is_compared_with_gpt2_on_the_same_texts(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert "| news | 1,819 | 404 | 4.50 | 500 | 3.64 | -23.8% |" in pages(files)[0]
    write_json(files["tokenizers"][0].parent / "evaluation.json", {**EVALUATION, "vocab_size": {"ours": 512}})
    assert "Comparison with GPT-2 and GPT-4: not available" in pages(files)[0]


# --- time and money --------------------------------------------------------------------------------------------------


def test_failed_and_interrupted_attempts_are_paid_for() -> None:
    gpu = {"device": "cuda", "device_name": "NVIDIA A100-SXM4-80GB", "world_size": 8}
    cost = cost_of([attempt("interrupted", 1800.0, **gpu), attempt("failed", 1800.0, **gpu), attempt("finished", 3600.0, **gpu)])
    assert (cost.wall_s, cost.gpu_hours, cost.attempts, cost.unfinished) == (7200.0, 16.0, 3, 2)
    assert cost.money == pytest.approx(16 * 1.79)


@pytest.mark.parametrize(
    ("name", "configured", "price"),
    [("NVIDIA H100 80GB HBM3", 0.0, 3.00), ("Tesla V100-SXM2", 0.0, 0.55), ("NVIDIA L40S", 0.0, 2.00), ("NVIDIA H100", 2.49, 2.49)],
)
def test_price_per_gpu_hour(name: str, configured: float, price: float) -> None:
    assert price_of(name, configured) == price


def test_without_a_gpu_the_cost_is_not_available(rendered: tuple[str, str]) -> None:
    markdown = rendered[0]
    assert "- **Cost**: not available (no GPU was used)" in markdown
    assert "$" not in markdown


def test_time_of_interrupted_attempts_is_in_the_total(rendered: tuple[str, str]) -> None:
    """1 h base + 1 h mid + 0.5 h + 10 min sft = 2h40m of training, and 6 scores of 12.5 s."""
    markdown = rendered[0]
    assert "- **Total time**: 2h41m (2h40m of it training, 4 attempts, 1 not finished)" in markdown
    assert "| total |  | 10 | 1 | 2h41m |" in markdown


@pytest.mark.parametrize(("seconds", "words"), [(0.35, "0.35 s"), (59.6, "1m00s"), (146, "2m26s"), (13_860, "3h51m"), (12, "12 s")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


# --- what is missing -------------------------------------------------------------------------------------------------


def test_half_finished_run_says_what_is_missing_and_which_command_builds_it(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    unfinished = training(tmp_path, "half", "base", {}, finished=False, attempts=[attempt("interrupted", 60.0)])
    files["run_manifests"] = [unfinished, tmp_path / "results/half/chat_sft/manifest.json"]
    files["scores"] = [Path("results/half/scores/sft/mmlu.json")]
    markdown, html = pages(files)
    assert "BASE of run half: not finished (last logged step: " in markdown and f"`snakemake --cores all {unfinished}`" in markdown
    assert f"SFT of run half: not built yet; build it with `snakemake --cores all {tmp_path}/results/half/chat_sft/manifest.json`" in markdown
    assert "score mmlu of SFT, run half: not evaluated yet; build it with `snakemake --cores all results/half/scores/sft/mmlu.json`" in markdown
    assert "This report is incomplete. The commands are to be typed with --configfile EXPERIMENT if that is not config.yaml." in markdown
    assert f"Run half: not built yet; build it with `snakemake --cores all {tmp_path}/results/half/chat_sft/manifest.json`." in markdown
    assert f"<code>snakemake --cores all {tmp_path}/results/half/chat_sft/manifest.json</code>" in html
    assert "| minimum validation bits per byte | not available (the stage has not finished) |" in markdown
    assert ">seconds<" in html  # the minute of the interrupted attempt is drawn
    assert "half | chat_sft" not in markdown  # in the table of times: nothing was spent


def test_finished_run_misses_nothing(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert inputs_of(files).missing == ()
    assert "incomplete" not in pages(files)[0]


def test_empty_report_is_a_report() -> None:
    markdown, html = pages({"run_manifests": [], "scores": [], "tokenizers": [], "tokens": [], "sources": []})
    assert markdown.count("Not available") >= 6
    assert checked(html).problems == []


def test_reported_run_without_files_is_missing(tmp_path: Path) -> None:
    missing = inputs_of(finished_run(tmp_path), runs=("other",)).missing
    assert [item.what for item in missing] == ["run other"]


@pytest.mark.parametrize(
    ("flag", "path", "words"),
    [
        ("run_manifests", "results/tiny/evaluate/manifest.json", "not below a training stage"),
        ("scores", "scores/extra/mmlu.json", "not below a phase"),
    ],
)
def test_misplaced_file_is_refused(tmp_path: Path, flag: str, path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        inputs_of({**finished_run(tmp_path), flag: [tmp_path / path]})


def test_manifest_of_another_stage_is_refused(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    with pytest.raises(UserError, match="made by stage 'tokenizer', 'fetch' is needed"):
        inputs_of({**files, "sources": files["tokenizers"]})


def test_missing_files_of_one_folder_are_told_in_one_sentence_in_the_order_of_the_workflow(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    chunks = [tmp_path / f"results/tokens/tiny.tiny/{number}/manifest.json" for number in range(9)]
    scores = [tmp_path / f"results/tiny/scores/{phase}/{task}.json" for phase in ("sft", "base") for task in ("identity", "spelling_bee")]
    told = inputs_of({**files, "tokens": chunks[:2], "scores": [*files["scores"], *scores]}).missing
    folder = tmp_path / "results"
    assert [(item.what, item.command.removeprefix("snakemake --cores all ")) for item in told] == [
        ("tokenize 0, 1", f"{folder}/tokens/tiny.tiny/{{0,1}}/manifest.json"),
        ("scores identity, spelling_bee of BASE, run tiny", f"{folder}/tiny/scores/base/{{identity,spelling_bee}}.json"),
        ("scores identity, spelling_bee of SFT, run tiny", f"{folder}/tiny/scores/sft/{{identity,spelling_bee}}.json"),
    ]
    (many,) = inputs_of({**files, "tokens": chunks}).missing
    assert many.sentence() == "tokenize 0, 1, 2, 3, 4, 5, 6, 7 and 1 more: not made yet; build it with `snakemake --cores all`"


def test_stage_whose_manifest_is_lost_is_not_called_running(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    files["run_manifests"][1].unlink()
    assert "Run tiny: its last attempt finished, but its manifest is not there; build it with" in pages(files)[0]


# --- provenance ------------------------------------------------------------------------------------------------------


def test_graph_connects_what_read_what(tmp_path: Path) -> None:
    built = graph.build(inputs_of(finished_run(tmp_path)))
    assert ("fetch wikipedia_summaries", "tokenizer tiny") in built.edges
    assert ("mid_train tiny", "chat_sft tiny") in built.edges and ("chat_sft tiny", "scores tiny sft") in built.edges
    assert built.unexplained == ()


def test_stage_that_was_made_from_an_earlier_model_is_pointed_out(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    training(tmp_path, "tiny", "base", {})  # built again, from other inputs
    (stale,) = [item for item in inputs_of(files).missing if item.what == "MID of run tiny"]
    assert stale.why == "made from an earlier BASE than the one shown" and stale.command.endswith("/mid_train/manifest.json")


# --- several runs ----------------------------------------------------------------------------------------------------


def test_runs_are_compared_side_by_side(tmp_path: Path) -> None:
    first, second = finished_run(tmp_path, "small"), finished_run(tmp_path, "large")
    both = together(first, second)
    markdown, html = pages(both)
    assert "- Model: small: depth 4, 12.3M parameters, 20,480 tokens of pretraining; large: depth 4," in markdown
    assert "| Metric | small | large |" in markdown
    assert "| parameters | 12,345,678 | 12,345,678 |" in markdown
    assert checked(html).problems == [] and len(checked(html).ids) == len(set(checked(html).ids))
    only = build_document(read_inputs(**both, runs=("small",)), Report())
    assert "large" not in render.markdown(only)


def test_bits_per_byte_of_different_texts_are_not_compared(tmp_path: Path) -> None:
    files = finished_run(tmp_path, "wiki")
    assert "do not compare" not in pages(files)[0]
    same = [training(tmp_path, run, "base", {"tokens.a.validation": files["tokens"][0]}) for run in ("one", "two")]
    assert "do not compare" not in pages({**files, "run_manifests": same, "scores": []})[0]
    other = training(tmp_path, "other", "base", {"tokens.b.validation": files["tokens"][0]})
    markdown = pages({**files, "run_manifests": [*same, other], "scores": []})[0]
    assert "- **Best validation in training, bits per byte**: not available (the runs are validated on different texts" in markdown
    assert "their bits per byte do not compare." in markdown


# --- figures ---------------------------------------------------------------------------------------------------------


def test_long_curve_is_thinned_to_means() -> None:
    thin = thinned([float(value) for value in range(2000)], figures.MAX_POINTS)
    assert len(thin) == 400 and thin[0] == 2.0 and thin[-1] == 1997.0
    assert thinned([1.0, 2.0], 400) == [1.0, 2.0]


def test_figure_has_the_page_colours_only() -> None:
    svg = figures.curves("x", [figures.Curve("a<b", (0, 1), (1, 2))], x_label="steps", y_label="loss")
    assert "var(--series-1)" in svg and not re.findall(r"#[0-9a-f]{6}\b", svg) and "a&lt;b" in svg


# --- curves of several runs --------------------------------------------------------------------------------------------


def logged(folder: Path, run: str, rows: list[dict[str, float]]) -> Training:
    """A finished base training that has logged these lines."""
    path = training(folder, run, "base", {})
    write_text(path.parent / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return inputs_of({"run_manifests": [path], "scores": [], "tokenizers": [], "tokens": [], "sources": []}).trainings[0]


def updates(tokens_per_step: int = 512, steps: int = 20, **more: float) -> list[dict[str, float]]:
    """Lines of updates: a step takes half a minute."""
    each = [
        {"step": step, "loss": 5.0 / step, "tokens": tokens_per_step * step, "flops": 1e15 * step, "elapsed_s": 30.0 * step} for step in range(1, steps + 1)
    ]
    return [{**row, **more} for row in each]


def views(trainings: list[Training], phase: str = "base") -> dict[str, dict[str, Figure]]:
    """Axis -> caption without its axis and phase -> figure."""
    choice = choice_of_curves(trainings, phase)
    return {label: {figure.caption.split(", over ")[0]: figure for figure in shown.figures} for label, shown in choice.options} if choice else {}


def test_reader_chooses_among_four_axes_and_tokens_come_first(tmp_path: Path) -> None:
    runs = [logged(tmp_path, "small", updates()), logged(tmp_path, "large", updates(1024))]
    choice = choice_of_curves(runs, "base")
    assert choice is not None and [label for label, _ in choice.options] == ["steps", "tokens", "FLOPs", "hours of training"]
    assert choice.options[choice.chosen][0] == "tokens"
    for label, shown in choice.options:
        (figure,) = shown.figures
        assert figure.caption == f"Training loss, nats per token, over {label}, BASE." and all(f">{word}<" in figure.svg for word in (label, "small", "large"))
        assert "var(--series-1)" in figure.svg and "var(--series-2)" in figure.svg and not re.findall(r"#[0-9a-f]{6}\b", figure.svg)
    assert list(views(runs[:1])) == ["steps", "tokens", "FLOPs", "hours of training"]


def test_run_without_validation_is_missing_in_the_figure_of_validations_alone(tmp_path: Path) -> None:
    checked_too = [*updates(), {"step": 10, "val_bpb": 1.5}, {"step": 20, "val_bpb": 1.25}]
    runs = [logged(tmp_path, name, rows) for name, rows in {"with": checked_too, "also": checked_too, "without": updates()}.items()]
    loss, validation = views(runs)["steps"].values()
    assert ">without<" in loss.svg and ">without<" not in validation.svg and ">also<" in validation.svg
    assert list(views(runs[1:])["tokens"]) == ["Training loss, nats per token", "Validation, bits per byte"]


def test_axis_that_a_run_did_not_log_is_left_out(tmp_path: Path) -> None:
    old = [{key: row[key] for key in ("step", "loss", "tokens")} for row in updates()]
    assert list(views([logged(tmp_path, "old", old), logged(tmp_path, "new", updates())])) == ["steps", "tokens"]


def test_too_few_steps_are_said_and_not_drawn(tmp_path: Path) -> None:
    assert choice_of_curves([logged(tmp_path, "one", updates(steps=1))], "base") is None


def test_curve_of_a_resumed_run_holds_each_step_once_at_its_hour_of_training() -> None:
    """Step 3 was logged by two attempts. The validation of step 2 stands where the update of step 2 is."""
    rows = [*updates(steps=3), {"step": 2, "val_bpb": 1.5}, {"step": 3, "loss": 9.0, "elapsed_s": 100.0}, {"step": 4, "loss": 8.0, "elapsed_s": 190.0}]
    assert series(rows, "loss", "hours") == (pytest.approx((30 / 3600, 60 / 3600, 100 / 3600, 190 / 3600)), (5.0, 2.5, 9.0, 8.0))
    assert series(rows, "val_bpb", "tokens") == ((1024.0,), (1.5,))
    assert series([{"step": 0, "val_bpb": 3.0}], "val_bpb", "tokens") == ((0.0,), (3.0,))
    assert series([{"step": 1, "loss": 3.0}], "loss", "tokens") == ((), ())
    assert series(rows, "loss", "flops")[0][2] == 3e15  # more than any counter reaches


def test_measured_time_and_memory_are_rows_where_they_are_logged(tmp_path: Path) -> None:
    rows = training_rows([logged(tmp_path, "a", updates(step_s=0.25, data_share=0.031, peak_rss_bytes=512_000_000)), logged(tmp_path, "old", updates())], 0.0)
    shown = {row[0].text: (row[1].text, row[2].text) for row in rows}
    assert shown["seconds per step, median"] == ("0.25 s", "not available")
    assert shown["of them fetching rows, median"][0] == "3.1%" and shown["peak host memory of rank 0"][0] == "512.0 MB"
    assert "peak memory of its GPU, reserved" not in shown


def test_training_loss_is_shown_in_bits_per_byte_too(tmp_path: Path) -> None:
    """2.0794 nats = 3 bits a token, of 3 bytes each as the 60,000 bytes and 20,000 tokens of the training text say: 1 bit per byte."""
    files = finished_run(tmp_path)
    (run,) = [logged(tmp_path, "a", updates(smoothed_loss=2.0794415))]
    told = {row[0].text: row[1] for row in training_rows([run], 0.0, inputs_of(files).tokens)}["training bits per byte, smoothed"]
    assert told.text == "not available"  # it was made from other text
    base = training(tmp_path, "a", "base", {"tokens": files["tokens"][0]})
    write_text(base.parent / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in updates(smoothed_loss=2.0794415)))
    markdown = pages({**files, "run_manifests": [base], "scores": []})[0]
    assert "| training bits per byte, smoothed | 1.0000 (estimate, at 3.00 bytes per token) |" in markdown
    assert "| last attempt ended, UTC | 1970-01-01 01:16 |" in markdown


def test_commit_is_shown_with_its_message_and_the_lock_with_its_packages(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    assert "- lock of packages: not available" in pages(files)[0]
    facts = {"git": {"commit": "0123456789abcdef", "message": "Say so", "branch": "main", "dirty": True}, "lock": {"packages": 124, "sha256": "ab" * 32}}
    base = training(tmp_path, "tiny", "base", {}, attempts=[attempt(**facts)])
    markdown = pages({**files, "run_manifests": [base], "scores": []})[0]
    assert "- Code: 0123456789ab on main (Say so), with uncommitted changes\n" in markdown
    assert "- lock of packages: 124 packages, sha256 abababababab\n" in markdown


# --- the stage -------------------------------------------------------------------------------------------------------


def test_stage_writes_both_files_without_torch(tmp_path: Path) -> None:
    files = finished_run(tmp_path)
    flags = ["--config", '{"title": "A title"}', "--markdown", str(tmp_path / "out/report.md"), "--html", str(tmp_path / "out/report.html")]
    for flag, paths in files.items():
        flags += [f"--{flag.replace('_', '-')}", *map(str, paths)]
    program = f"import sys; from nanochat.stages import report; report.main({flags!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/report.md").read_text().startswith("# A title\n")
    assert "<h1>A title</h1>" in (tmp_path / "out/report.html").read_text()


def test_unknown_key_of_the_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tilte"):
        report.main(["--config", '{"tilte": "x"}', "--markdown", str(tmp_path / "a"), "--html", str(tmp_path / "b")])


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.mark.workflow
def test_report_of_the_miniature_holds_the_numbers_of_its_files(finished: Workspace) -> None:
    markdown = finished.path("results/report/report.md").read_text(encoding="utf-8")
    rows = summary_rows(markdown)
    for file in sorted(finished.path("results/tiny/scores").glob("*/*.json")):
        found = json.loads(file.read_text())
        shown = rows["bits per byte (lower is better)" if file.stem == "bpb" else title(file.stem)][["base", "mid", "sft"].index(file.parent.name)]
        assert shown.split(" ")[0] == f"{found['score']:.4f}", file
    for stage in ("base_train", "mid_train", "chat_sft"):
        counts = json.loads(finished.path(f"results/tiny/{stage}/manifest.json").read_text())["counts"]
        assert f"| final validation bits per byte | {counts['final_val_bpb']:.4f} |" in markdown
        assert f"| parameters | {counts['parameters']:,} |" in markdown
        for sample in json.loads(finished.path(f"results/tiny/{stage}/samples.json").read_text()):
            assert sample["prompt"] in markdown and sample["completion"].strip() in markdown
    assert "incomplete" not in markdown


@pytest.mark.workflow
def test_page_of_the_miniature_is_well_formed_and_every_input_is_explained(finished: Workspace) -> None:
    page = checked(finished.path("results/report/report.html").read_text(encoding="utf-8"))
    assert page.problems == [] and page.open == [] and len(page.ids) == len(set(page.ids))
    run = finished.path("results/tiny")
    files = {
        "run_manifests": [run / stage / "manifest.json" for stage in PHASES.values()],
        "scores": sorted(run.glob("scores/*/*.json")),
        "tokenizers": sorted(finished.path("results/tokenizers").glob("*/manifest.json")),
        "tokens": sorted(finished.path("results/tokens").glob("*/*/manifest.json")),
        "sources": sorted(finished.path("resources").glob("*/*/manifest.json")),
    }
    built = graph.build(inputs_of(files))
    assert built.unexplained == ()
    assert {f"scores tiny {phase}" for phase in PHASES} <= {end for _, end in built.edges}


@pytest.mark.workflow
def test_report_of_snakemake_holds_every_result_in_a_category_with_a_caption(finished: Workspace, tmp_path: Path) -> None:
    done = finished.snakemake("--cores", "1", "--report", str(tmp_path / "r.zip"))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        names = archive.namelist()
        page = archive.read("r/report.html").decode()
    for name in ("report.html", "report.md", "bpb.json", "evaluation.json"):
        assert any(file.endswith(f"/{name}") and "/data/" in file for file in names), name
    assert len([name for name in names if name.endswith("/manifest.json")]) > 3
    for category in ("Report", "Scores", "Models", "Tokenizers", "Data"):
        assert f'"{category}"' in page, category
    assert "after phase sft of run tiny: the score with its 95% interval" in page and "The model of stage base_train of run tiny" in page
    assert "of source " in page and "beside those of GPT-2 and GPT-4" in page and "The whole result on one page" in page


@pytest.mark.workflow
def test_every_phase_of_the_miniature_is_given_the_same_prompts(finished: Workspace) -> None:
    texts = [json.loads(finished.path(f"results/tiny/{stage}/samples.json").read_text()) for stage in PHASES.values()]
    prompts = [{sample["prompt"] for sample in of_phase} for of_phase in texts]
    assert prompts[0] == prompts[1] == prompts[2] and {"The capital of France is", "Who are you?"} <= prompts[0]
