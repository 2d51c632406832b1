"""The page of a run and its model card: whole and safe, whatever the run has and however things are called."""

import os
import re
import shutil
from html.parser import HTMLParser

import pytest
import toys
import yaml
from PIL import Image

import fomo
from fomo.page import write_page
from fomo.stages.so_far import evaluate_so_far

HOSTILE = [
    "<script>alert(1)</script> 😀 longer than most",
    'no: [1, {"a"}] | # x',
    "- '&amp; *b* {{ config }}",
]
SECTIONS = ["asked", "data", "plan", "trials", "heads", "brought", "classes", "more"]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page has: ids, links, sources and alternative texts of images, headings; and that all tags are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.loaded, self.alts, self.headings = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.open += [] if tag in VOID else [tag]
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.loaded += [found[name] for name in ("src", "href") if name in found and tag != "a"]
        self.alts += [found["alt"]] if tag == "img" else []
        self.headings += [tag] if tag in ("h1", "h2", "h3") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def written(run) -> tuple[str, Page, dict, str]:
    """The page as text and as it is parsed, the head of the card as it is parsed, and the rest of it."""
    text = write_page(run).read_text()
    _, header, card = (run.folder / "MODEL_CARD.md").read_text().split("---\n", 2)
    return text, Page(text), yaml.safe_load(header), card


def draw_figure(run, name: str, *, after: float = 1.0, blank: bool = False) -> None:
    """A picture that a notebook drew, so many seconds after the evaluation; maybe one of nothing."""
    run.figures.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8)) if blank else Image.linear_gradient("L")
    image.save(run.figures / f"{name}.png")
    seconds = (run.folder / "12_evaluation" / "stage.json").stat().st_mtime + after
    os.utime(run.figures / f"{name}.png", (seconds, seconds))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A finished run that searched nothing, of hostile names, whose test labels are hidden."""
    root = tmp_path_factory.mktemp("odd")
    folder = toys.write_dataset(root / 'own "<b>" 😀: $x & {{ y }}', train=5, test=2)
    (folder / "classes.txt").write_text("\n".join(HOSTILE) + "\n")
    toys.write_csv(folder, "test", [f"{number:03}.png" for number in range(6)], [""] * 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(root / "runs"))
        patch.setenv("FOMO_FIGURES", str(root / "figures"))
        run = toys.tiny_run(folder, **toys.SHORT | {"trials": 0, "darts_epochs": 0, "members": 1}, final="validation")
        fomo.evaluate(run)
        yield run


def test_page_has_every_section_that_the_run_has_and_loads_nothing(copied, finished):
    for name in ("comparison", "mistakes", "where_it_looks"):
        draw_figure(copied, name)
    (copied.folder / "notebooks").mkdir()
    (copied.folder / "notebooks" / "01_toy.html").touch()
    text, page, _, _ = written(copied)
    assert [one for one in page.ids if one in SECTIONS] == SECTIONS
    assert "where" in page.ids
    assert not list(copied.folder.parent.glob("inspection-*"))
    assert [link for link in page.links if link[1:] not in page.ids] == ["notebooks/01_toy.html"]
    assert all(source.startswith("data:") for source in page.loaded)
    assert "http" not in text
    assert "<script" not in text
    assert 'lang="en"' in text
    assert page.headings[0] == "h1"
    assert set(page.headings[1:]) == {"h2"}
    assert len(page.alts) == 3
    assert all(page.alts)
    value = finished.evaluation.metrics.set_index(["model", "metric"]).loc[("final", "accuracy"), "value"]
    assert f"{100 * value:.1f}%</b> of images are named right" in text
    assert "24 test images" in re.sub(r"\s+", " ", text)


def test_pictures_of_nothing_and_those_older_than_the_evaluation_are_left_out(copied):
    draw_figure(copied, "comparison", after=-60)
    draw_figure(copied, "mistakes", blank=True)
    assert written(copied)[1].alts == []


def test_suspects_are_shown_where_the_run_has_them(copied):
    table = "kind,rank,file,given,suggested,why,row\nlabel,1,a.png,top,bottom,top 3%,0\n"
    (copied.folder / "13_suspects" / "suspects.csv").write_text(table)
    text, page, _, card = written(copied)
    assert "suspects" in page.ids
    assert "a.png" in text
    assert "! look</b>Labels that may be wrong: 1, many" in text
    assert r"13\_suspects/suspects.csv ranks them." in card


def test_notes_are_sentences_and_names_of_files_stay_as_they_are(copied):
    notes = "note\nall.csv: images are in column a\nthere is no test split\n"
    (copied.folder / "1_preprocessing" / "notes.csv").write_text(notes)
    text = written(copied)[0]
    assert "</b>all.csv: images are in column a.</li>" in text
    assert "</b>There is no test split.</li>" in text


def test_page_says_that_no_minutes_were_left_to_look_for_wrong_labels(copied):
    copied.clock.keep("suspects", 0)
    assert "No minutes were left to look for wrong labels." in written(copied)[0]


def test_what_is_done_about_images_in_train_and_test_is_said_once(tmp_path):
    folder = toys.write_class_folders(tmp_path / "images", count=8)
    (folder / "train").mkdir()
    for name in toys.CLASSES:
        shutil.copytree(folder / name, folder / "test" / name)
        (folder / name).rename(folder / "train" / name)
        for path in sorted((folder / "test" / name).iterdir())[2:]:
            path.unlink()
    run = toys.tiny_run(folder, **toys.SHORT | {"trials": 0, "darts_epochs": 0}, on_leak="drop", final="validation")
    fomo.inspect(fomo.preprocess(run).dataset)
    fomo.evaluate(run)
    text, _, _, card = written(run)
    for told in (text.split("<nav")[0], card):
        assert "6 train images show what a test image shows; they are left out of training" in told
        assert "byte" not in told
        assert "none is in train and in test" not in told


def test_hostile_names_are_text_and_hidden_labels_are_told(odd):
    text, page, header, card = written(odd)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 😀" in text
    assert not {"trials", "heads"} & set(page.ids)
    assert "The test labels are hidden" in text
    assert "<b>! look</b>3 validation images: the accuracy is known to" in text  # even if all three are right
    assert "100.0% to 100.0%" not in text
    assert "validation images" in text
    assert not re.search(r"\d test images", text)
    assert header["model-index"][0]["name"] == 'own "<b>" 😀: $x & {{ y }}'
    assert "<script" not in re.sub(r"\\<", "", card)
    assert r"no: \[1, \{" in card
    assert "😀 longer than most, no: " in card
    assert "IMAGES=photos" in text
    assert "$$x" in text  # which make reads as $x


def test_card_has_what_the_hub_reads_and_the_sections_that_a_card_has(copied, finished):
    _, _, header, card = written(copied)
    final = finished.evaluation.metrics.query("model == 'final'").set_index("metric")["value"]
    (result,) = header["model-index"][0]["results"]
    assert header["pipeline_tag"] == result["task"]["type"] == "image-classification"
    assert {one["name"]: one["value"] for one in result["metrics"]} == pytest.approx(dict(final), abs=1e-4)
    assert result["dataset"]["split"] == "test"
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == [
        *("Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"),
        *("Quantitative analyses", "Ethical considerations", "Caveats and recommendations"),
    ]
    assert card.count("To be written by a person") == 3
    rows = [line for line in card.splitlines() if line.startswith("| top |")]
    assert [row.count("|") for row in rows] == [6]


def test_interrupted_run_has_a_page_of_the_best_model_so_far(dataset):
    run = toys.tiny_run(dataset)
    fomo.probe(run)
    evaluate_so_far(run)
    text, page, header, _ = written(run)
    assert "Interrupted: this is the best model so far" in text
    assert {"asked", "plan", "brought"} <= set(page.ids)
    assert not {"trials", "classes", "more"} & set(page.ids)
    assert "none is in train and in test" not in text  # nobody has looked for near duplicates
    assert header["model-index"][0]["results"][0]["dataset"]["split"] == "test"


def test_page_of_large_pictures_stays_small_enough_for_the_mail(copied):
    draw_figure(copied, "comparison")
    draw_figure(copied, "not_shown")
    text, page, _, _ = written(copied)
    assert len(page.alts) == 1
    assert len(text) < 100_000
