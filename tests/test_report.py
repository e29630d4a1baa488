"""The text of the report: complete, self-contained, the same in each call. browser/ tests the page in a browser."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw
from synthetic_report import BRATS, HOSTILE, PATIENTS, make_report, square

from brainseg_jax.evaluation import wording
from brainseg_jax.evaluation.case_pictures import outline, probability_pictures, scan_pictures
from brainseg_jax.scans.description import LGG

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """All elements of a page that a test needs; a tag that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.ids, self.text, self.scripts = [], [], [], "", {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, *pair) for pair in attrs.items()]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in VOID:
            self.open.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if "data-case" in attrs:
            self.scripts[attrs["data-case"]] = json.loads(data)
        elif tag not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    runs, cases = make_report(path)
    return path, Page(path.read_text()), runs, cases


def test_it_is_one_whole_file_that_names_no_other_place(single):
    path, page, _, _ = single
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert len(page.ids) == len(set(page.ids))
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("#", "data:")), (tag, name, value[:80])
        assert not name.startswith("on"), (tag, name)  # no program in an attribute
    text = path.read_text()
    assert "@import" not in text and not re.search(r"url\((?!#)", text) and "fetch(" not in text
    assert "default-src 'none'" in text
    referred = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href") and value[:1] == "#"}
    assert referred <= set(page.ids)


def test_the_same_input_gives_the_same_bytes(single, tmp_path):
    make_report(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == single[0].read_bytes()


def test_it_says_what_it_is_and_what_its_figures_are(single):
    _, page, runs, _ = single
    words = " ".join(page.text.split())
    assert "Research code, not a medical device" in words and "made up" in words
    mean = np.mean([row["dice"] for row in runs[0].rows])
    assert f"3-D Dice {mean:.3f}" in words
    assert "defined for 3 of 4 patients" in words  # HD95, undefined without a prediction
    assert "Do not read them as mm" in words
    for label, meaning in wording.score_words("voxel", 2.0).values():
        assert label in words and meaning in words
    assert "brainseg_jax, commit " in words or "brainseg_jax, version " in words


def test_a_hostile_name_is_only_a_name(single):
    _, page, _, _ = single
    assert HOSTILE in page.scripts and page.scripts[HOSTILE]["name"] == HOSTILE
    assert page.text.count(HOSTILE) >= 3
    assert not any(tag == "img" for tag, _, _ in page.attributes)


def test_worst_patients_come_first_and_each_slice_is_there(single):
    _, page, runs, _ = single
    dice = {row["patient"]: row["dice"] for row in runs[0].rows}
    assert list(page.scripts) == sorted(PATIENTS, key=dice.get)
    for case in page.scripts.values():
        assert len(case["numbers"]) == len(case["scan"]) == len(case["truth"][0]["paths"]) == 6
        overlay = case["overlays"][0]
        assert len(overlay["probability"][0]) == len(overlay["attention"]) == len(overlay["masks"][0]["paths"]) == 6
        assert case["truth"][0]["areas"] == [0, 121, 100, 81, 64, 49] and case["first"] == 1
        with Image.open(io.BytesIO(base64.b64decode(case["scan"][2]))) as image:
            assert image.size == (48, 48)


def test_runs_side_by_side(tmp_path):
    runs, _ = make_report(tmp_path / "report.html", ("one", "two"))
    page = Page((tmp_path / "report.html").read_text())
    words = " ".join(page.text.split())
    assert "two minus one, same patients" in words and "of one" not in page.ids
    first, second = ([row["dice"] for row in run.rows] for run in runs)
    assert f"{np.mean(np.subtract(second, first)):+.3f}".replace("-", "−") in words
    assert all(len(case["overlays"]) == 2 for case in page.scripts.values())


def test_several_targets_and_cases(tmp_path):
    path = tmp_path / "report.html"
    runs, cases = make_report(path, description=BRATS, cases_of_first=2)
    page = Page(path.read_text())
    words = " ".join(page.text.split())
    assert len(page.ids) == len(set(page.ids)) and "choice" in page.ids
    views = {value for _, name, value in page.attributes if name == "data-view"}
    assert views == {"0", "1", "2", "3"}
    assert "Segmentation of whole tumor, tumor core and enhancing tumor" in words and "4, with 5 cases" in words
    core = [row["dice"] for row in runs[0].rows if row["target"] == "tumor core"]
    of_patients = [np.mean([core[0], core[4]]), *core[1:4]]  # the first and the last case are of one patient
    assert f"3-D Dice {np.mean(of_patients):.3f}" in words and f"tumor core4{np.mean(of_patients):.3f}" in words
    means = np.reshape([row["dice"] for row in runs[0].rows], (5, 3)).mean(axis=1)
    assert f"3-D Dice {np.mean([np.mean([means[0], means[4]]), *means[1:4]]):.3f}" in words
    assert list(page.scripts) == [cases[i].name for i in np.argsort(means, kind="stable")]
    for case in page.scripts.values():
        assert [one["areas"][1] for one in case["truth"]] == [121, 64, 25]
        assert len(case["overlays"][0]["probability"]) == len(case["overlays"][0]["masks"]) == 3
    assert "Tumor core slices found" in words and "brighter on T2-FLAIR than" in words and "tumor's voxels" in words
    make_report(tmp_path / "again.html", description=BRATS, cases_of_first=2)
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_nothing_of_it_is_shown_for_one_target(single):
    path, page, _, _ = single
    assert "choice" not in page.ids and "target" not in page.ids and "Mean over the targets" not in page.text
    assert not any(name in ("data-view", "data-target") for _, name, _ in page.attributes)
    assert ".target0" not in path.read_text() and "Brain tumor segmentation, scores by patient" in page.text
    assert "Tumor slices found" in page.text and "brighter on FLAIR" in page.text


@pytest.mark.parametrize("corner", [0, 4, 37])
def test_an_outline_encloses_its_mask(corner):
    """Drawn at four times the size and filled, its area is that of the mask without the cut corners."""
    mask = square(corner, side=11)
    mask[2, 20:30, 30:45] = True  # a second part,
    mask[2, 24:26, 34:38] = False  # with a hole
    found = outline(mask)
    assert found.areas == mask.sum(axis=(1, 2)).tolist() and found.paths[0] == ""
    image = Image.new("1", (96, 96))
    for part in found.paths[2].split("z")[:-1]:
        start, steps = part[1:].split("l")
        points = [np.array(start.split(), int)]
        numbers = np.array(re.findall(r"-?\d+", steps), int).reshape(-1, 2)
        points += list(points[0] + numbers.cumsum(axis=0))
        area = Image.new("1", (96, 96))
        ImageDraw.Draw(area).polygon([tuple(p) for p in points], fill=1)
        image = Image.fromarray(np.asarray(image) ^ np.asarray(area))
    drawn = np.asarray(image).reshape(48, 2, 48, 2).mean(axis=(1, 3)) > 0.5
    apart = drawn ^ mask[2]
    assert apart.sum() <= 0.12 * mask[2].sum()


def test_pictures_show_what_they_should():
    volume = np.zeros((2, 32, 32), np.uint8)
    volume[0, 8:24, 8:24] = 40  # a dim scan is made bright
    gray = np.asarray(Image.open(io.BytesIO(base64.b64decode(scan_pictures(volume)[0]))).convert("L"))
    assert gray[16, 16] > 240 and gray[2, 2] < 10
    probability = np.zeros((2, 32, 32), np.float32)
    probability[1, 8:24, 8:24] = 1.0
    nothing, something = probability_pictures(probability)
    assert nothing == ""
    rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(something))))
    assert rgba[16, 16, 3] == round(0.75 * 255) and rgba[2, 2, 3] == 0
    assert (rgba[16, 16, :2] > 200).all() and rgba[16, 16, 2] < 80  # yellow


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("dice", 0.71449, "0.714"),
        ("hd95", 12.345, "12.3"),
        ("hd95", None, "–"),
        ("volume_true", 14379.0, "14,379"),
        ("volume_error", -0.16, "−0.2"),
        ("volume_error_relative", 0.256, "+26"),
        ("found_slices", 1373, "1,373"),
    ],
)
def test_how_values_are_written(name, value, written):
    assert wording.write(name, value) == written


@pytest.mark.parametrize(
    ("names", "rated", "description"),
    [
        (("first",), ("first",), LGG),
        (("first", "second"), ("first", "second"), LGG),
        (("first", "second"), ("second",), LGG),
        (("first", "second"), ("first",), BRATS),
    ],
)
def test_a_number_beside_each_mask_is_shown_against_the_dice(tmp_path, names, rated, description):
    runs, _ = make_report(tmp_path / "report.html", names, rated=rated, description=description)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    for title in ("Dice against the expected Dice", "Patients by expected Dice", "Risk and coverage"):
        assert page.text.count(title) == len(description.names)
    row = next(row for run in runs if run.name in rated for row in run.rows)
    assert f"{row['patient']}: {row['dice']:.3f}, expected 0.900 (0.800 to 1.000)" in page.text
    # In order of agreement; the last patient has an empty mask and the lowest confidence.
    if description is LGG:
        dice = [row["dice"] for row in runs[0].rows]
        found = np.mean([np.mean(1.0 - np.array(dice[: k + 1])) for k in range(4)])
        assert f"area {found:.3f}, best " in page.text
    assert ("Expected Dice, second" in page.text) is (len(names) > 1)
    assert "Agreement: Dice between the masks at probabilities 0.1 and 0.9" in page.text


def test_without_probabilities_there_is_no_such_number(single):
    _, page, _, _ = single
    assert "Risk and coverage" not in page.text and "Agreement" not in page.text
