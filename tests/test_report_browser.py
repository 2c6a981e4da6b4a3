"""The report in a real Chromium: nothing is requested, nothing is complained of, it fits a phone and paper, and its axes can be chosen without a script."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from page_checker import checked
from report_files import STAGES, core_score, finished_run, pages, score, together, training

from nanochat.report.render import FOLDER

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine; on Debian: apt-get install chromium")
WIDEST_OVERFLOW = 1  # pixels, of rounding


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests of this file."""
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs, one with CORE and a score in every phase."""
    root = tmp_path_factory.mktemp("report")
    runs = [finished_run(root, run) for run in ("small", "a-run-with-a-rather-long-name")]
    runs[0]["scores"].append(core_score(root, "small", runs[0]["run_manifests"][0]))
    runs[0]["run_manifests"].append(training(root, "small", "rl", {"model": runs[0]["run_manifests"][2]}))
    runs[0]["scores"] += [score(root, "small", phase, "mmlu", model) for phase, model in zip(STAGES, runs[0]["run_manifests"], strict=True)]
    path = root / "report.html"
    path.write_text(pages(together(*runs))[1], encoding="utf-8")
    return path


def visible(browser: Browser, selector: str) -> int:
    """How many elements are laid out."""
    return int(browser.run(f"[...document.querySelectorAll('{selector}')].filter(e => e.getClientRects().length).length"))


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (320, False)])
def test_page_asks_for_nothing_complains_of_nothing_and_fits_the_window(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.run("document.documentElement.scrollWidth") <= width + WIDEST_OVERFLOW
    assert visible(browser, "svg") > 5 and visible(browser, "table") > 5


@needs_chromium
@pytest.mark.parametrize(("width", "seen"), [(390, True), (250, False)])
def test_table_of_phases_fits_a_phone_with_its_last_column(browser: Browser, page: Path, width: int, seen: bool) -> None:
    browser.open(page, width=width)
    right, table = "document.querySelector('#summary table thead th:last-child').getBoundingClientRect().right", "document.querySelector('#summary table')"
    assert browser.run(f"{table}.innerText").split("\n")[0].split("\t") == ["Metric", "BASE", "MID", "SFT", "RL"]
    assert (browser.run(right) <= width) == seen


@needs_chromium
def test_request_error_and_overflow_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<p style="width: 900px">x</p><img src="http://127.0.0.1:9/x.png"><script>console.error("no"); throw 1</script>', encoding="utf-8")
    browser.open(bad, width=390)
    assert "http://127.0.0.1:9/x.png" in browser.requests and len(browser.complaints) >= 2
    assert browser.run("document.documentElement.scrollWidth") > 390 + WIDEST_OVERFLOW


@needs_chromium
def test_axis_is_chosen_with_the_mouse_and_with_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = "[...document.querySelectorAll('#base .view')].findIndex(view => view.getClientRects().length)"
    names = browser.run("[...document.querySelectorAll('#base .choice label')].map(label => label.innerText)")
    assert names == ["steps", "tokens"] and browser.run(shown) == 1 and visible(browser, "#base .view") == 1
    browser.run("document.querySelector('#base .choice label').click()")
    assert browser.run(shown) == 0 and visible(browser, "#base .view") == 1
    browser.run("document.querySelector('#base .choice input').focus()")
    browser.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    assert browser.run(shown) == 1
    assert browser.run("document.querySelectorAll('#sft .choice input')[1].checked")  # the choices of other stages are their own


@needs_chromium
def test_on_paper_there_is_no_navigation_one_axis_and_nothing_cut_off(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, width=718)  # A4 without margins, in CSS pixels
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert visible(browser, "nav") == 0 and visible(browser, "#base .view") == 1 and visible(browser, ".choice input") == 0
    too_wide = "[...document.querySelectorAll('table')].filter(t => t.checkVisibility() && t.getBoundingClientRect().right > 718 + 1)"
    assert browser.run(f"{too_wide}.map(table => table.innerText.slice(0, 40))") == []
    browser.pdf(tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 40


def test_figures_tables_and_choices_speak_to_those_who_do_not_see_them(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    figures = re.findall(r"<svg[^>]*>", html)
    assert len(figures) > 5 and all('role="img"' in figure and re.search(r'aria-label="[^"]{20,}"', figure) for figure in figures)
    headers = re.findall(r"<th\b([^>]*)>(.*?)</th>", html)
    assert headers and all(content.strip() and re.search(r'scope="(col|row)"', attributes) for attributes, content in headers)
    radios = re.findall(r'<input type="radio" name="[^"]+" id="([^"]+)"', html)
    assert radios and all(f'<label for="{radio}">' in html for radio in radios) and html.count("<legend>") == html.count("<fieldset")
    assert 'lang="en"' in html and "<main>" in html and checked(html).problems == []


def luminance(color: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1, none, to 21, black on white."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out_from_the_page(theme: int) -> None:
    """WCAG AA: 4.5 for text, 3 for what is drawn."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    block = re.findall(r":root \{(.*?)\}", (FOLDER / "report.css").read_text(encoding="utf-8"), re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for text, behind in (("ink", "paper"), ("muted", "paper"), ("muted", "panel"), ("ink", "panel"), ("warn", "warn-panel"), ("series-1", "paper")):
        assert contrast(colors[text], colors[behind]) >= 4.5, (text, behind)
    assert all(contrast(colors[f"series-{number}"], colors["paper"]) >= 3 for number in range(1, 7))
