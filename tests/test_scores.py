"""Numbers made of answers: pass@k, bootstrap intervals, ChatCORE, parts, and the paired test, against values computed otherwise."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from nanochat.eval.bpb import TextLoss
from nanochat.eval.chatcore import BASELINES, CHATCORE, centred, chatcore
from nanochat.eval.intervals import bootstrap, bootstrap_means, interval_of_mean, newcombe, wilson, wilson_of_mean
from nanochat.eval.paired import compare_items, mcnemar_exact, sign_flips
from nanochat.eval.results import Sampled, pass_metrics, score_of_rows
from nanochat.tasks import TASKS

# --- pass@k ----------------------------------------------------------------------------------------------------------
from nanochat.tasks.draw import pass_at


@pytest.mark.parametrize(("n", "correct"), [(1, 0), (1, 1), (4, 1), (5, 2), (6, 6), (7, 3)])
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_answer(n: int, correct: int) -> None:
    answers = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(answers, k))
        assert pass_at(k, n, correct) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))), abs=1e-15)


def test_pass_at_k_refuses_what_is_no_draw() -> None:
    for k, n, correct in ((0, 4, 1), (5, 4, 1), (2, 4, 5), (1, 4, -1)):
        with pytest.raises(ValueError, match="k of n"):
            pass_at(k, n, correct)


def test_pass_metrics_grow_with_k_and_pass_at_1_is_the_mean() -> None:
    rows = [Sampled(index, ["x"] * 6, [place < index % 4 for place in range(6)]) for index in range(20)]
    metrics = pass_metrics(rows)
    assert list(metrics) == ["pass@1", "pass@2", "pass@4", "pass@6"]
    assert metrics["pass@1"]["score"] == pytest.approx(sum(sum(row.are_right) for row in rows) / 120)
    scores = [metric["score"] for metric in metrics.values()]
    assert scores == sorted(scores) and scores[-1] == 15 / 20
    assert metrics["pass@6"]["interval"] == list(wilson(15, 20)), "a row is solved or not"


@pytest.mark.parametrize("rights", [0, 6])
def test_problems_that_are_all_solved_or_all_missed_leave_doubt(rights: int) -> None:
    metrics = pass_metrics([Sampled(index, ["x"] * 6, [place < rights for place in range(6)]) for index in range(20)])
    assert all(metric["interval"] == pytest.approx(wilson(20 * rights // 6, 20)) for metric in metrics.values())
    assert metrics["pass@1"]["interval"][1] - metrics["pass@1"]["interval"][0] > 0.15


def test_the_interval_of_pass_at_1_holds_what_simulated_models_score() -> None:
    """Problems of uneven difficulty, 8 answers each: about 95 percent, and narrower than if a problem told no more than one answer."""
    draws = np.random.RandomState(0)
    held, width = 0, []
    for _ in range(300):
        values = (draws.binomial(8, draws.beta(0.3, 2.0, 164)) / 8).tolist()
        low, high = wilson_of_mean(values, 8)
        held += low <= 0.3 / 2.3 <= high
        width.append((high - low) / float(np.diff(wilson(sum(values), 164))[0]))
    assert 0.91 <= held / 300 <= 0.98 and np.mean(width) < 0.7
    assert wilson_of_mean([0.5] * 6, 8) == pytest.approx(wilson(24, 48)), "no problem is harder than another: as 48 answers"
    assert wilson_of_mean([0.5], 8) == wilson(0.5, 1), "of a single problem nobody knows"


# --- bootstrap -------------------------------------------------------------------------------------------------------


def test_a_bootstrap_interval_of_a_proportion_is_near_wilsons() -> None:
    values = [1.0] * 120 + [0.0] * 280
    assert bootstrap(values, seed=3) == pytest.approx(wilson(120, 400), abs=0.012)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_a_bootstrap_mean_has_the_textbook_standard_error() -> None:
    values = np.random.RandomState(0).normal(5.0, 2.0, 300)
    means = bootstrap_means(values.tolist(), seed=0, resamples=4000)
    assert means.std() == pytest.approx(values.std() / math.sqrt(300), rel=0.05) and means.mean() == pytest.approx(values.mean(), abs=0.01)


def test_weights_count_as_repeated_rows() -> None:
    """A row of twice the bytes pulls twice as much."""
    means = bootstrap_means([1.0, 4.0], [2.0, 1.0], seed=0, resamples=200)
    assert {round(float(mean), 9) for mean in means} == {1.0, 2.0, 4.0}, "both rows: (2 x 1 + 1 x 4) / 3"
    with pytest.raises(ValueError, match="weights"):
        bootstrap_means([1.0], [0.0], seed=0)


def test_bits_per_byte_of_rows_have_an_interval_and_are_the_ratio_of_sums() -> None:
    rows = [TextLoss(nats=50.0 + index, text_bytes=40 + 3 * index, tokens=20) for index in range(30)]
    content = score_of_rows(rows, seed=0)
    assert content["score"] == pytest.approx(sum(row.nats for row in rows) / math.log(2) / sum(row.text_bytes for row in rows))
    assert content["interval"][0] < content["score"] < content["interval"][1] and content["n"] == 30
    assert score_of_rows([TextLoss()], seed=0)["score"] is None


# --- ChatCORE --------------------------------------------------------------------------------------------------------


PUBLISHED = [  # of models of depth 20 and 24, by others: scores, mean over five tasks, over six
    ((0.4478, 0.3311, 0.3315, 0.0500, 0.0915, 1.0), 0.1244, 0.2703),
    ((0.4684, 0.3362, 0.3314, 0.0697, 0.0915, 1.0), 0.1352, 0.2793),
    ((0.4440, 0.3225, 0.3264, 0.0409, 0.0854, 0.9883), 0.1167, 0.2620),
    ((0.4630, 0.3123, 0.3302, 0.0561, 0.0854, 0.9805), 0.1231, 0.2660),
    ((0.6271, 0.5034, 0.3603, 0.0872, 0.1524, 1.0), 0.2455, 0.3712),
]


@pytest.mark.parametrize(("scores", "five", "six"), PUBLISHED)
def test_chatcore_reproduces_published_means(scores: tuple[float, ...], five: float, six: float) -> None:
    given: dict[str, Any] = {task: (score, wilson(round(score * 1000), 1000)) for task, score in zip(CHATCORE["ChatCORE-6"], scores, strict=True)}
    for name, mean in (("ChatCORE-5", five), ("ChatCORE-6", six)):
        found = chatcore(name, given)
        assert found.value == pytest.approx(mean, abs=6e-5) and found.why == ""
        assert found.interval is not None and found.interval[0] < mean < found.interval[1]


def test_chatcore_is_not_available_until_every_task_has_a_score() -> None:
    given: dict[str, Any] = dict.fromkeys(CHATCORE["ChatCORE-5"], (0.5, (0.4, 0.6)))
    assert chatcore("ChatCORE-5", given).value == pytest.approx((3 * centred(0.5, 0.25) + 2 * 0.5) / 5)
    lacking = chatcore("ChatCORE-6", given)
    assert lacking.value is None and lacking.interval is None and lacking.why == "no score of spelling_bee"
    assert chatcore("ChatCORE-5", {}).why == "none of its tasks was scored"
    without = chatcore("ChatCORE-5", {**given, "mmlu": (0.5, None)})
    assert without.value is not None and without.interval is None
    assert chatcore("ChatCORE-5", {**given, "mmlu": (None, None)}).value is None


def test_guessing_is_zero_and_perfection_is_one() -> None:
    for name, tasks in CHATCORE.items():
        guessed = chatcore(name, {task: (BASELINES.get(task, 0.0), None) for task in tasks})
        assert guessed.value == 0.0 and chatcore(name, dict.fromkeys(tasks, (1.0, None))).value == 1.0
        assert all(TASKS[task].baseline == BASELINES.get(task, 0.0) for task in tasks)


def test_the_interval_of_chatcore_holds_what_simulated_models_score() -> None:
    """95 percent of intervals hold the true value, within what 400 simulations can tell."""
    draws, truth = np.random.RandomState(0), {"arc_easy": 0.5, "arc_challenge": 0.35, "mmlu": 0.33, "gsm8k": 0.05, "humaneval": 0.09}
    rows = {"arc_easy": 400, "arc_challenge": 300, "mmlu": 500, "gsm8k": 300, "humaneval": 164}
    true_value = sum(centred(score, BASELINES.get(task, 0.0)) for task, score in truth.items()) / 5
    held = 0
    for _ in range(400):
        right = {task: int(draws.binomial(rows[task], truth[task])) for task in truth}
        found = chatcore("ChatCORE-5", {task: (right[task] / rows[task], wilson(right[task], rows[task])) for task in truth})
        assert found.interval is not None
        held += found.interval[0] <= true_value <= found.interval[1]
    assert 0.92 <= held / 400 <= 0.98


def test_tasks_with_no_right_answer_leave_their_doubt_in_the_mean() -> None:
    """A mean of 0 of 20 alone is Wilson's, and of two such tasks the distance is divided by the root of 2."""
    high = wilson(0, 20)[1]
    assert interval_of_mean([0.0], [wilson(0, 20)]) == pytest.approx((0.0, high))
    assert interval_of_mean([0.0, 0.0], [wilson(0, 20)] * 2) == pytest.approx((0.0, high / math.sqrt(2)))


# --- the paired test -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (1, 9, 0.021484375), (10, 3, 0.09228515625), (6, 16, 0.052478790)],
)
def test_mcnemar_has_the_values_of_the_binomial(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p, abs=1e-8)
    assert mcnemar_exact(only_second, only_first) == mcnemar_exact(only_first, only_second)


def test_mcnemar_of_many_items_is_near_the_normal_approximation() -> None:
    z = (800 - 700 - 1) / math.sqrt(1500)  # with the correction for continuity
    assert mcnemar_exact(700, 800) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # Altman et al., Statistics with Confidence (2000), table 6.2; Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014), of Bentur et al.
        ((14, 5, 0, 22), 0.011, 0.226),
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_newcombes_interval_has_the_published_limits(table: tuple[int, int, int, int], low: float, high: float) -> None:
    both, only_second, only_first, neither = table
    assert newcombe(both, only_first, only_second, neither) == pytest.approx((low, high), abs=5e-4)
    turned = newcombe(both, only_second, only_first, neither)
    assert turned == pytest.approx((-high, -low), abs=5e-4)


def test_the_interval_of_a_difference_is_never_sure_of_nothing() -> None:
    assert newcombe(0, 0, 0, 20) == pytest.approx((-wilson(0, 20)[1], wilson(0, 20)[1])), "all wrong twice"
    for table in ((10, 0, 0, 10), (20, 0, 0, 0), (0, 20, 0, 0)):
        low, high = newcombe(*table)
        assert -1 <= low < high <= 1 and high - low > 0.1


def test_flipped_signs_agree_with_mcnemar_and_with_all_sign_patterns() -> None:
    for only_first, only_second in ((2, 9), (40, 61), (5, 5)):
        parts = np.repeat([-0.1, 0.1], [only_first, only_second])
        assert sign_flips(parts, seed=0) == pytest.approx(mcnemar_exact(only_first, only_second), abs=0.02)
    parts = np.array([0.5, -0.2, 0.9, 0.4, 0.1, 0.3, -0.35])
    sums = np.array(list(itertools.product([-1, 1], repeat=len(parts)))) @ parts
    assert sign_flips(parts, seed=0) == pytest.approx((np.abs(sums) >= parts.sum() - 1e-9).mean(), abs=0.02)
    assert sign_flips(np.array([]), seed=0) == 1.0 and sign_flips(parts, seed=0) == sign_flips(parts, seed=0) != sign_flips(parts, seed=1)


def test_two_rows_prove_nothing() -> None:
    rows = [{"index": index, "score": 2.0, "bytes": 100} for index in range(2)]
    found = compare_items(rows, [{**row, "score": 1.9} for row in rows])
    assert found is not None and found.p == pytest.approx(0.5, abs=0.02) and not found.is_significant


def judged(rights: str) -> list[dict[str, Any]]:
    return [{"index": place, "key": f"row {place}", "right": right == "1"} for place, right in enumerate(rights)]


def test_two_models_are_compared_on_the_rows_that_both_answered() -> None:
    found = compare_items(judged("1100110000"), [*judged("1111111100")[::-1], {"index": 99, "key": "more", "right": True}])
    assert found is not None and (found.n, found.first, found.second) == (10, 0.4, 0.8) and found.remarks == ("10 rows in common of 10 and 11",)
    assert found.difference == pytest.approx(0.4) and found.p == 0.125 and not found.is_significant and found.interval[0] < 0.4 < found.interval[1]
    assert compare_items(judged("1"), [{"index": 5, "key": "other", "right": True}]) is None
    again = [*judged("10"), *judged("10")]
    twice = compare_items(again, again)
    assert twice is not None and twice.n == 4 and twice.remarks == (), "rows of the same content count as often as they are asked"


def test_a_paired_test_sees_what_two_intervals_hide() -> None:
    first, second = judged("1" * 50 + "0" * 50), judged("1" * 50 + "1" * 8 + "0" * 42)
    found = compare_items(first, second)
    assert found is not None and found.is_significant and found.p == pytest.approx(2 / 2**8)
    assert wilson(50, 100)[1] > wilson(58, 100)[0], "the intervals overlap"


def test_scores_that_are_no_proportions_are_compared_by_a_seeded_bootstrap() -> None:
    draws = np.random.RandomState(1)
    sizes, hard = draws.randint(50, 200, 80), draws.normal(1.0, 0.3, 80)
    first = [{"index": i, "key": str(i), "score": float(hard[i]), "bytes": int(sizes[i])} for i in range(80)]
    better = [{**item, "score": item["score"] - 0.02 + 0.01 * draws.normal()} for item in first]
    found = compare_items(first, better)
    assert found is not None and found.interval[1] < 0 and found.p < 0.001
    assert found == compare_items(first, better) and found.difference == pytest.approx(-0.02, abs=0.005)
    same = compare_items(first, first)
    assert same is not None and same.p == 1.0 and same.difference == 0
