"""The report in a real browser, from the disk and without a network. Skipped where there is no Chromium."""

import shutil

import pytest

from negalign_ray.report import write_report
from tests.report.runs import HOSTILE, make_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)")

# Contrast of every text with what lies behind it (WCAG 2.2, 1.4.3); canvas reads colours of any notation.
CONTRAST = """() => {
  const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    brush.clearRect(0, 0, 1, 1); brush.fillStyle = colour; brush.fillRect(0, 0, 1, 1);
    return [...brush.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return rgba("Canvas");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.data.trim() || !element.checkVisibility() || element.closest("script, style, .hidden")) continue;
    const front = rgba(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (isLarge ? 3 : 4.5)) found.push(`${node.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, select, summary, a, [tabindex='0']")]
.filter((element) => {
  const labels = [...(element.labels ?? [])].map((label) => label.textContent).join("");
  const by = document.getElementById(element.getAttribute("aria-labelledby") ?? "")?.textContent ?? "";
  const own = element.matches("button, summary, a, pre") ? element.textContent : "";
  return ![element.getAttribute("aria-label") ?? "", by, labels, own].join("").trim();
}).map((element) => element.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Containers have no user namespaces for Chromium's sandbox; the only page it opens is ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One run, two runs, and a run that has hardly begun."""
    folder = tmp_path_factory.mktemp("runs")
    demo, other = make_run(folder / "demo"), make_run(folder / "other", after=0.3)
    bare = folder / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text('{"step": 1, "learner/loss": 0.5}\n')
    runs = {"one": [demo], "two": [demo, other], "bare": [bare]}
    for name, paths in runs.items():
        write_report(paths, folder / f"{name}.html", max_samples=1000)
    return {name: (folder / f"{name}.html").as_uri() for name in runs}


@pytest.fixture
def visit(browser, files):
    """visit("one") -> the page, once it is ready. What the console says in the meantime fails the test."""
    said: list[str] = []
    contexts = []

    def open_page(name="one", *, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        context.set_default_timeout(100_000)  # ms; machines that run tests are busy
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(files[name])
        page.wait_for_selector("#samples .empty, html[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def count(page) -> str:
    return page.locator(".count").inner_text()


def first_item(page):
    return page.locator("#items > li").first


@pytest.mark.parametrize("name", ["one", "two", "bare"])
def test_every_report_opens_without_a_word_on_the_console(visit, name):
    page = visit(name)
    charts = page.locator(".group .chart .plot svg")
    assert charts.count() == page.locator(".group .chart").count() > 0


def test_texts_are_not_in_the_document_until_they_are_opened(visit):
    page = visit()
    item = page.locator("#items > li").nth(1)
    assert "Mulch bed" not in page.content()
    item.get_by_role("button", name="Show the texts of prompt 2").click()
    assert "Mulch bed 1 in autumn" in item.inner_text()
    assert "Mulch bed 2" not in page.content()
    item.get_by_role("button", name="Cover the texts of prompt 2").click()
    assert "Mulch bed" not in page.content()
    page.get_by_label("Show texts").check()
    assert page.locator("#items .text").count() == 3 * 20, "prompt, before and after of every item on the page"


def test_texts_that_look_like_code_are_shown_as_text(visit):
    page = visit()
    first_item(page).locator("button.cover").first.click()
    assert first_item(page).locator(".text").all_inner_texts() == [f"What is {HOSTILE}?", HOSTILE, f"It is {HOSTILE}"]
    assert page.locator("img").count() == 0
    assert page.title() == "demo · alignment report"


def test_samples_are_filtered_by_behaviour_role_score_and_words(visit):
    page = visit()
    form = page.locator("#viewer")
    assert count(page) == "24 prompts"
    form.get_by_label("Behaviour").select_option("weeds")
    assert count(page) == "8 of 24 prompts"
    form.get_by_label("Behaviour").select_option("all")
    form.get_by_label("at least").fill("0.6")  # before: 0.40 to 0.63
    assert count(page) == "4 of 24 prompts"
    form.get_by_label("before", exact=True).uncheck()  # after: 0.15 to 0.38
    assert count(page) == "0 of 24 prompts"
    form.get_by_label("at least").fill("")
    assert page.locator("#items .answer").count() == 20, "after alone"
    form.get_by_label("Search all texts").fill("MULCH bed 7 ")
    assert count(page) == "1 of 24 prompts"
    assert "found here" in first_item(page).inner_text()
    assert page.locator("mark").count() == 0, "a hit in a covered text is not shown"
    first_item(page).get_by_role("button").first.click()
    assert page.locator("mark").all_inner_texts() == ["Mulch bed 7"]


def test_samples_are_ordered_and_shown_page_by_page(visit):
    page = visit()
    form = page.locator("#viewer")
    page.get_by_role("button", name="Show 4 more of 4").click()
    assert page.locator("#items > li").count() == 24
    form.get_by_label("Order").select_option("highest score")
    assert "#24" in first_item(page).inner_text()
    page.get_by_text("Training", exact=True).click()
    assert count(page) == "120 prompts"
    form.get_by_label("human negative").uncheck()
    form.get_by_label("Behaviour").select_option("slugs")
    assert count(page) == "40 of 120 prompts"
    assert "own sample" in first_item(page).inner_text()
    assert "human negative" not in first_item(page).inner_text()


def test_the_answers_of_several_runs_stand_side_by_side(visit):
    page = visit("two")
    form = page.locator("#viewer")
    names = page.locator("#items > li").nth(1).locator(".answer b").all_inner_texts()
    assert names == ["before", "after, demo", "after, other"]
    form.get_by_label("Run").select_option("other")
    form.get_by_label("at most").fill("0.31")  # after of other: 0.30 to 0.53
    assert count(page) == "2 of 24 prompts"
    form.get_by_label("at most").fill("")
    form.get_by_label("Search all texts").fill("leave bed 7 alone")  # the answer before, which the runs share
    assert count(page) == "1 of 24 prompts"


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_kept(visit):
    page = visit(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_text("Light", exact=True).click()
    assert page.evaluate(background) == "rgb(255, 255, 255)" != dark
    page.reload()
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.get_by_text("Auto", exact=True).click()
    assert page.evaluate(background) == dark


def test_charts_are_read_with_the_keyboard_and_follow_each_other(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    loss, terms = (
        page.get_by_role("slider", name="Loss", exact=True),
        page.get_by_role("slider", name="Margin and its terms"),
    )
    loss.focus()
    for key in ("Home", "ArrowRight", "PageUp"):
        page.keyboard.press(key)
    assert loss.get_attribute("aria-valuetext").startswith("step 12: Loss 0.6")
    assert terms.get_attribute("aria-valuenow") == "12"
    page.keyboard.press("Escape")
    assert "→" in loss.get_attribute("aria-valuetext"), "from the start to the end"
    page.locator(".chart .about summary").first.click()
    assert page.get_by_role("region", name="Data of Loss").locator("tbody tr").count() == 60


def test_a_mouse_over_a_chart_reads_it(visit):
    page = visit()
    page.locator(".plot").first.hover()
    page.wait_for_selector(".plot .cursor", state="attached")
    step = page.locator(".plot .cursor-step").first.text_content().split()[1].rstrip(":")
    assert 28 <= int(step) <= 32, "the middle of 60 steps"


def test_an_event_leads_to_its_line(visit):
    page = visit()
    page.get_by_role("link", name="fault at 1 min 30 s: the actor died").click()
    assert "the actor died" in page.evaluate("document.activeElement.textContent")


@pytest.mark.parametrize(("name", "width"), [("one", 390), ("two", 390), ("one", 320), ("two", 820)])
def test_narrow_screens_scroll_in_one_direction_only(visit, name, width):
    page = visit(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_nothing_harmful_is_printed_not_even_what_was_opened(visit):
    page = visit(color_scheme="dark")
    page.get_by_label("Show texts").check()
    page.emulate_media(media="print")
    for hidden in ("#items", "#viewer", "header.bar"):
        assert not page.locator(hidden).is_visible(), hidden
    assert page.get_by_text("Samples are not printed.").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_enough_contrast(visit, scheme):
    page = visit(color_scheme=scheme)
    page.get_by_label("Show texts").check()
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.wait_for_selector(".fold .plot svg")
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(CONTRAST) == []
