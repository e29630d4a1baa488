"""The report in headless Chromium: nothing is fetched, no error, and what can be pressed does what it says."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from synthetic_report import BRATS, HOSTILE, PATIENTS, make_report

from brainseg_jax.evaluation.case_pictures import target_style

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

WORST = "TCGA_AA_0004_19990101"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        # No sandbox: in a container a process of root has none.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[("first",), ("one", "two")], ids=["one run", "two runs"])
def report(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    make_report(path, request.param)
    return path, request.param


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(browser, report, request):
    """The page, open; at the end there was no error and nothing but the file itself was asked for."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))

    def answer(route):
        asked.append(route.request.url)
        if route.request.url == report[0].as_uri():
            route.continue_()
        else:
            route.abort()

    page.route("**/*", answer)
    page.goto(report[0].as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report[0].as_uri()]
    context.close()


@pytest.fixture(scope="module", params=[("first",), ("one", "two")], ids=["one run", "two runs"])
def targets_report(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    make_report(path, request.param, description=BRATS, cases_of_first=2)
    return path, request.param


@pytest.fixture
def targets_page(browser, targets_report):
    """A page of three targets and of a patient with two cases, open on a phone in the dark; there was no error."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(targets_report[0].as_uri())
    yield page
    assert said == []
    context.close()


def picture(page):
    """The picture as it is on the screen, without its rounded corners, through which the page shows."""
    # In the middle of the screen, so that what stays at its top does not cover it.
    page.locator("#picture").evaluate("(shown) => shown.scrollIntoView({ block: 'center', behavior: 'instant' })")
    return np.asarray(Image.open(io.BytesIO(page.locator("#picture").screenshot())).convert("RGB"), int)[9:-9, 9:-9]


def column(page, index):
    rows = page.locator("#table tbody tr:not([hidden])")
    return [rows.nth(i).locator("th, td").nth(index).inner_text() for i in range(rows.count())]


def test_it_fits_the_width(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("svg text").count() > 20 and page.locator(".plot svg").first.bounding_box()["width"] > 250


def test_the_slider_changes_the_picture(page):
    slider = page.locator("#slice")
    before, words = picture(page), page.locator("#position").inner_text()
    assert "Slice 2, 2 of 6" in words and "121 pixels in the reference" in words
    drag = "(slider) => { slider.value = 4; slider.dispatchEvent(new Event('input')); }"
    slider.evaluate(drag)  # while it is dragged, not only when it is let go
    assert "Slice 5, 5 of 6" in page.locator("#position").inner_text()
    after = picture(page)
    assert (np.abs(after - before).max(axis=-1) > 40).mean() > 0.2
    slider.fill("1")
    assert (picture(page) == before).all()


def test_keys_turn_the_slices(page):
    place = page.locator("#slice")
    page.locator("#viewer").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert place.input_value() == "3"
    page.keyboard.press("ArrowLeft")
    assert place.input_value() == "2"
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    assert place.input_value() == "5"  # the last
    place.focus()
    page.keyboard.press("ArrowLeft")  # one step, not two: the slider has keys of its own
    assert place.input_value() == "4"


def test_layers_can_be_taken_away_and_maps_put_on(page, report):
    both = picture(page)
    page.uncheck("[data-layer=truth]")
    without = picture(page)
    green = (both[..., 1] > 180) & (both[..., 0] < 120)
    assert green.sum() > 30 and not ((without[..., 1] > 180) & (without[..., 0] < 120)).any()
    page.uncheck("[data-layer=scan]")
    for name in range(len(report[1])):
        page.uncheck(f"[data-layer=run{name}]")
    assert picture(page).max() < 5  # black
    page.check("input[value=attention]")
    assert picture(page).max() > 30
    page.select_option("#patient", value=PATIENTS[0])
    page.check("input[value=probability]")
    yellow = picture(page)
    assert ((yellow[..., 0] > 120) & (yellow[..., 2] < 90)).mean() > 0.02
    if len(report[1]) > 1:
        page.check("input[value=attention]")
        page.select_option("#of", "1")  # it has no attention gates
        assert picture(page).max() < 5


def test_patients_can_be_gone_through_and_chosen(page):
    chosen = page.locator("#patient")
    assert chosen.input_value() == WORST and page.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert chosen.input_value() != WORST
    page.locator("#previous").click()
    assert chosen.input_value() == WORST
    page.locator(".open", has_text=HOSTILE).click()
    assert chosen.input_value() == HOSTILE
    assert page.locator("#picture").get_attribute("aria-label").startswith(HOSTILE)
    page.locator(".thumb").first.click()
    assert chosen.input_value() == WORST and page.locator(".thumb[aria-current]").count() == 1
    page.locator(f".mark[data-patient={PATIENTS[0]}]").first.dispatch_event("click")
    assert chosen.input_value() == PATIENTS[0]
    assert "Predicted volume" in page.locator("#figures").inner_text()


def test_the_table_sorts_and_filters(page):
    head = page.locator("#table thead th").nth(1)
    head.locator("button").click()
    values = [float(value) for value in column(page, 1)]
    assert values == sorted(values) and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert [float(value) for value in column(page, 1)] == sorted(values, reverse=True)
    page.locator("#table thead button").first.click()
    assert column(page, 0)[0] == HOSTILE or column(page, 0) == sorted(column(page, 0))
    page.fill("#filter", "aa_00")
    assert sorted(column(page, 0)) == [PATIENTS[0], PATIENTS[3]]
    assert page.locator("#shown").inner_text() == "2 of 4"
    page.fill("#filter", "")
    assert len(column(page, 0)) == 4


def test_an_undefined_score_stays_last(page, report):
    if len(report[1]) > 1:
        return  # no column of HD95 then
    heads = page.locator("#table thead button").all_inner_texts()
    index = heads.index("HD95")
    for _ in range(2):
        page.locator("#table thead button").nth(index).click()
        assert column(page, index)[-1] == "–"


def test_it_can_be_printed(page):
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 with margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#viewer").is_hidden() and page.locator(".thumb").count() == 4
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_what_can_be_pressed_has_a_name_and_words_can_be_read(page):
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select")].filter(
        (e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).length""")
    assert unnamed == 0
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    for color in (
        "--text",
        "--quiet",
        "--strong",
        "--run0",
        "--run1",
        "--run2",
        "--run3",
        "--run4",
        "--run5",
        "--truth",
    ):
        for ground in ("--page", "--card"):
            assert contrast(page, color, ground) >= (4.5 if color in ("--text", "--quiet", "--strong") else 3.0), color


def contrast(page, *names):
    """WCAG 2.2 contrast of two colors of the style sheet."""
    lights = []
    for name in names:
        value = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')").strip()
        rgb = np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def colored(page, color):
    """How many pixels of the picture have nearly this color."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture(page) - rgb).max(axis=-1) < 30).sum())


COLORS = [target_style(k).color for k in range(3)]


def test_a_target_is_chosen_for_the_whole_page(targets_page, targets_report):
    page, runs = targets_page, len(targets_report[1])
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    choice = page.locator("#target")
    assert choice.locator("option").all_inner_texts() == ["Mean over the targets", *BRATS.names]
    cards, titles = page.locator(".card:visible"), page.locator(".of:visible")
    assert cards.count() == 5 and titles.all_inner_texts() == ["Mean over the targets"] * 3
    assert all(colored(page, color) > 30 for color in COLORS)
    assert "whole tumor 121 / 0, tumor core 64 / 0, enhancing tumor 25 / 0" in page.locator("#position").inner_text()
    assert page.locator(".thumb b:visible").count() == page.locator(".patients:visible tbody tr").count() == 5
    choice.select_option("2")
    assert cards.count() == 8 and titles.all_inner_texts() == ["tumor core"] * 3
    assert [colored(page, color) > 30 for color in COLORS] == [False, True, False]
    assert "tumor core 64 / 0" in page.locator("#position").inner_text()
    assert "whole tumor" not in page.locator("#position").inner_text()
    assert "Volume of the tumor core" in page.locator(".plot:visible").all_inner_texts()[1 + (runs > 1)]
    assert (
        page.locator("#map-target").input_value() == "1" and "Reference volume" in page.locator("#figures").inner_text()
    )
    page.locator("[data-target='1']").uncheck()
    assert colored(page, COLORS[1]) == 0 and "no target selected" in page.locator("#position").inner_text()
    choice.select_option("0")
    assert all(colored(page, color) > 30 for color in COLORS) and cards.count() == 5


def test_layers_of_several_targets(targets_page, targets_report):
    page = targets_page
    page.select_option("#patient", PATIENTS[0])
    both = colored(page, COLORS[0])
    page.uncheck("[data-layer=predicted]")
    truth = colored(page, COLORS[0])
    page.check("[data-layer=predicted]")
    page.uncheck("[data-layer=truth]")
    predicted = picture(page)
    assert both > truth > 30 and 20 < colored(page, COLORS[0]) < truth  # the prediction is dashed
    page.uncheck("[data-layer=scan]")
    page.uncheck("[data-layer=predicted]")
    assert picture(page).max() < 5
    page.check("input[value=probability]")
    yellow = [int(((picture(page)[..., 0] > 120) & (picture(page)[..., 2] < 90)).sum())]
    page.select_option("#map-target", "2")
    yellow.append(int(((picture(page)[..., 0] > 120) & (picture(page)[..., 2] < 90)).sum()))
    assert yellow[0] > 2 * yellow[1] > 0  # 121 pixels against 25
    if len(targets_report[1]) > 1:
        page.check("input[value='']")
        page.check("[data-layer=scan]")
        page.check("[data-layer=predicted]")
        page.select_option("#of", "1")  # predicted one pixel further down
        assert (picture(page) != predicted).any()


def test_a_dot_opens_the_first_case_of_its_patient(targets_page):
    page = targets_page
    page.select_option("#patient", HOSTILE)
    page.locator(f".mark[data-patient={PATIENTS[0]}]:visible").first.dispatch_event("click")
    assert page.locator("#patient").input_value() == PATIENTS[0]
    page.locator(".patients:visible .open").filter(has_text=PATIENTS[0] + "1").click()
    assert page.locator("#patient").input_value() == PATIENTS[0] + "1"


def test_each_table_sorts_and_all_are_filtered(targets_page):
    page = targets_page
    page.fill("#filter", "aa_0001")
    page.locator("#target").select_option("3")
    assert page.locator(".patients:visible tbody tr:visible").count() == 2
    assert page.locator("#shown").inner_text() == "2 of 5"
    page.fill("#filter", "")
    table = page.locator(".patients:visible")
    table.locator("thead button").nth(2).click()
    values = [float(row.locator("th, td").nth(2).inner_text()) for row in table.locator("tbody tr").all()]
    assert values == sorted(values) and len(values) == 5


def test_several_targets_can_be_printed_and_read_without_scripts(browser, targets_report):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 720, "height": 1000})
    page = context.new_page()
    page.goto(targets_report[0].as_uri())
    assert page.locator("#choice").is_hidden() and page.locator(".of:visible").count() == 3 * 4
    page.emulate_media(media="print")
    assert page.locator(".card:visible").count() == 5 + 3 * 8
    context.close()
