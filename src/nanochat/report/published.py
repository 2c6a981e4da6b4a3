"""Scores that others published, to set ours beside: never computed here, always marked.

CORE of the GPT-2 sizes: table of the CORE evaluation bundle. Runs of nanochat's d20 (561M parameters, 11.2B tokens): its README of 13 October 2025,
and two reports of its speedrun on 8 H100, of commits c6b7ab7 (November) and d575940 (December 2025). Every value is over all rows of a task.
"""

from dataclasses import dataclass, field

BY_OTHERS = "published by others"


@dataclass(frozen=True)
class Published:
    """One model: which, where it was published, and the scores of one phase ("" where phases do not apply)."""

    name: str
    origin: str
    phase: str
    scores: dict[str, float] = field(default_factory=dict)


def _d20(month: str, origin: str, core: float, **phases: tuple[float | None, ...]) -> tuple[Published, ...]:
    tasks = ("arc_challenge", "arc_easy", "gsm8k", "humaneval", "mmlu", "spelling_bee")
    base = Published(f"d20, {month}", origin, "base", {"core": core})
    tuned = [
        Published(f"d20, {month}", origin, phase, {task: value for task, value in zip(tasks, values, strict=True) if value is not None})
        for phase, values in phases.items()
    ]
    return (base, *tuned)


GPT2 = tuple(
    Published(f"GPT-2 {size}", "CORE evaluation bundle", "", {"core": core})
    for size, core in (("124M", 0.1139), ("355M", 0.1849), ("774M", 0.2146), ("1.5B", 0.2565))
)
D20 = (
    *_d20(
        *("Oct 2025", "nanochat README of 13 October 2025", 0.2219),
        mid=(0.2875, 0.3561, 0.0250, 0.0671, 0.3111, None),
        sft=(0.2807, 0.3876, 0.0455, 0.0854, 0.3151, None),
        rl=(None, None, 0.0758, None, None, None),
    ),
    *_d20(
        *("Nov 2025", "report of a nanochat speedrun, commit c6b7ab7", 0.1910),
        mid=(0.3311, 0.4478, 0.0500, 0.0915, 0.3315, 1.0),
        sft=(0.3362, 0.4684, 0.0697, 0.0915, 0.3314, 1.0),
    ),
    *_d20(
        *("Dec 2025", "report of a nanochat speedrun, commit d575940", 0.2054),
        mid=(0.3225, 0.4440, 0.0409, 0.0854, 0.3264, 0.9883),
        sft=(0.3123, 0.4630, 0.0561, 0.0854, 0.3302, 0.9805),
    ),
)
# centred accuracy of each of the 22 tasks of CORE, of the run of December 2025
D20_CORE = {
    "hellaswag_zeroshot": 0.2611,
    "jeopardy": 0.1138,
    "bigbench_qa_wikidata": 0.5396,
    "arc_easy": 0.5123,
    "arc_challenge": 0.1297,
    "copa": 0.2800,
    "commonsense_qa": 0.0663,
    "piqa": 0.3711,
    "openbook_qa": 0.1307,
    "lambada_openai": 0.3664,
    "hellaswag": 0.2615,
    "winograd": 0.2821,
    "winogrande": 0.0876,
    "bigbench_dyck_languages": 0.1050,
    "agi_eval_lsat_ar": 0.0870,
    "bigbench_cs_algorithms": 0.4038,
    "bigbench_operators": 0.1571,
    "bigbench_repeat_copy_logic": 0.0000,
    "squad": 0.2179,
    "coqa": 0.1997,
    "boolq": -0.2329,
    "bigbench_language_identification": 0.1798,
}
