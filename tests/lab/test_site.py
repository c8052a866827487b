"""The site of all evidence: what its pages say, that every link leads somewhere, and that a text stays text."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import json
import re
import statistics
from pathlib import Path
from urllib.parse import unquote, urlsplit

import made_works
import pytest

from partita.core import registry
from partita.core.errors import UserError
from partita.lab import site
from partita.lab.site.library import gather
from partita.lab.site.work import commands

COUNT = 10
VOID = {"meta", "input"}
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title></pre></svg><!--", "a & b &lt; ' \""]


class Reader(html.parser.HTMLParser):
    """Checks that elements nest and that ids are unique; collects links, ids, tags, attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.attributes.append((tag, found))
        self.links += [v for k, v in attrs if k in ("href", "src", "action")]
        self.ids += [found["id"]] if "id" in found else []
        assert not [k for k in found if k.startswith("on") or k == "style"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index with made-up works on the path, and their evidence."""
    root = tmp_path_factory.mktemp("made")
    index = made_works.library(root / "src", COUNT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "index", lambda: index)
        patch.syspath_prepend(str(root / "src"))
        yield made_works.evidence(root / "evidence", COUNT)


@pytest.fixture(scope="module")
def built(made, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "site"
    assert site.build(out, made) == len(list(out.rglob("*.html")))
    return out


@pytest.fixture(scope="module")
def read(built) -> dict[str, Reader]:
    return {str(p.relative_to(built)): Reader(p.read_text()) for p in sorted(built.rglob("*.html"))}


def alone(made, tmp_path, entries, key="made_000") -> Reader:
    """The page of one work whose evidence is `entries`."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / f"{key}.json").write_text(json.dumps(entries))
    return Reader(site.pages(gather(folder))[f"papers/{key}.html"])


def test_there_is_a_page_for_every_work_and_slot(read):
    index = registry.index()
    expected = {
        "index.html",
        *(f"papers/{k}.html" for k in index["papers"]),
        *(f"slots/{s}.html" for s in index["parts"]),
    }
    assert set(read) == expected


def test_every_link_and_anchor_resolves(built, read):
    checked = 0
    for name, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https" and link not in read
                continue
            assert not parts.path.startswith("/")
            target = (built / name).parent / unquote(parts.path) if parts.path else built / name
            inside = str(target.resolve().relative_to(built.resolve()))
            assert inside in read, f"{name}: {link}"
            if parts.fragment:
                assert parts.fragment in read[inside].ids, f"{name}: {link}"
            checked += 1
    assert checked > 500


def test_descriptions_of_plots_are_there(read):
    for page in read.values():
        for tag, found in page.attributes:
            if tag == "svg" and found.get("role") == "img":
                assert {found["aria-labelledby"], found["aria-describedby"]} <= set(page.ids)


def test_only_the_listing_runs_a_script_and_only_the_one_named(built, read):
    assert [name for name, page in read.items() if "script" in page.tags] == ["index.html"]
    text = (built / "index.html").read_text()
    code = re.search(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(code[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    for path in built.rglob("*.html"):
        assert "default-src 'none'" in path.read_text()


def rows_of(built) -> dict[str, str]:
    text = (built / "index.html").read_text()
    found = re.findall(r"<tr data-family.*?</tr>", text, re.S)
    return {re.search(r"papers/(\w+)\.html", row)[1]: row for row in found}


def test_the_listing_holds_every_work_with_what_filters_read(built):
    rows = rows_of(built)
    assert set(rows) == set(registry.index()["papers"])
    row = rows["made_003"]  # two statements: 3 holds, 4 unclear
    assert 'data-family="family_3" data-slots="credit" data-verdicts="holds unclear"' in row
    assert row.count("0.120 [0.050, 0.200]") == 2
    assert row.count("2026-11-20") == 2
    assert "1.31 [1.10, 1.50] ×" in rows["made_001"]
    assert "off by 2e-09, 1e-06 allowed" in rows["made_002"]


def test_a_work_without_evidence_says_so(built, read):
    rows = rows_of(built)
    for key in ("made_004", "made_009", "ppo"):
        assert "No evidence yet" in rows[key] and 'data-verdicts="none"' in rows[key]
        assert "No evidence yet." in read[f"papers/{key}.html"].text
    assert "No claim is stated here." in read["papers/made_009.html"].text
    assert "statement of work 4" in read["papers/made_004.html"].text
    assert "No evidence yet" not in read["papers/made_000.html"].text
    assert "No evidence yet" not in rows["made_000"]


def test_verdicts_are_counted_and_shown(made, built, read):
    found = [entry["verdict"] for path in made.glob("*.json") for entry in json.loads(path.read_text())]
    text = read["index.html"].text
    for verdict, mark in (("holds", "✓"), ("unclear", "?"), ("fails", "✗")):
        assert found.count(verdict) > 0
        assert f"{mark} {verdict} {found.count(verdict)}" in text
    assert f"{len(found)} statements tested" in text
    assert "8 with evidence" in text
    for n, verdict in ((0, "holds"), (1, "unclear"), (5, "fails")):
        assert verdict in read[f"papers/made_{n:03d}.html"].text.split("What it changes")[0]


def test_values_and_effect_of_a_claim(made, read):
    entry = json.loads((made / "made_000.json").read_text())[0]
    text = read["papers/made_000.html"].text
    assert "effect 0.120 [0.050, 0.200]" in text
    assert "made_000 - grpo; success, higher is better; 8 seeds; it must lie above 0" in text
    assert entry["rule"] in text and entry["note"] in text
    for seed, a, b in zip(entry["seed_list"], entry["values"]["treatment"], entry["values"]["control"], strict=True):
        assert f"{seed}{b:.4f}{a:.4f}{a - b:.4f}" in text
    a, b = (statistics.fmean(entry["values"][arm]) for arm in ("treatment", "control"))
    assert f"mean{b:.4f}{a:.4f}{a - b:.4f}" in text
    for label, effect in (("0%", "0.020 [-0.030, 0.070]"), ("75%", "0.140 [0.090, 0.190]")):
        assert re.search(rf"{label}0\.\d+0\.\d+{re.escape(effect)}", text)
    strongest = entry["dial"]["settings"][-1]["values"]
    means = "".join(f"{statistics.fmean(strongest[arm]):.4f}" for arm in ("control", "treatment"))
    assert f"75%{means}0.140" in text
    assert "0.120 [0.030, 0.210]; the claim that it grows: holds." in text
    for fact in ("abc1234", "2 min 03 s", "torch 2.13.0", "cores 2", "lr 0.0003, 0.001", "tiny-0.3m"):
        assert fact in text


def test_ratios_are_divided_not_subtracted(made, read):
    entry = json.loads((made / "made_001.json").read_text())[0]
    a, b = (entry["values"][arm][0] for arm in ("treatment", "control"))
    assert f"{a / b:.3f}" in read["papers/made_001.html"].text
    assert "it must lie above 1" in read["papers/made_001.html"].text


def test_what_is_not_there_is_not_drawn(read):
    titles = {
        name: re.findall(r"Values per seed|Effect along the dial|Learning curves", page.text)
        for name, page in read.items()
    }
    assert len(titles["papers/made_000.html"]) == 2 * 3  # the caption, and the title in the plot
    assert set(titles["papers/made_001.html"]) == {"Values per seed"}
    assert titles["papers/made_002.html"] == titles["papers/made_004.html"] == []


def test_theory(read):
    text = read["papers/made_002.html"].text
    assert "largest difference 2e-09, allowed 1e-06" in text
    assert "Measured - expected" in text
    assert "[1]0.50.501e-06" in text
    assert "Nothing is tuned." in text


def test_a_dirty_commit_is_marked(read):
    assert read["papers/made_003.html"].text.count("dirty") == 1
    assert "dirty" not in read["papers/made_000.html"].text


def test_a_claim_worded_anew_has_no_evidence(made, tmp_path):
    page = alone(made, tmp_path, [made_works.comparison("made_000", 0, statement="an older wording")])
    assert "an older wording" in page.text
    assert "statement of work 0" in page.text
    assert "No evidence yet for this statement as it is worded now." in page.text


def test_the_least_that_an_entry_may_hold(made, tmp_path):
    page = alone(made, tmp_path, [{"key": "made_000", "statement": "just so", "verdict": "fails"}])
    assert "effect not recorded" in page.text
    assert "No values are recorded that could be drawn." in page.text
    assert page.text.count("not recorded") >= 5


def test_what_a_paper_changes_and_how_to_run_it(made, read):
    text = read["papers/made_000.html"].text
    assert "made_000 and grpo differ in 1 field of" in text
    assert "creditgroup_relative(eps=1e-06, std=True, unbiased=True)A_i = (R_i - mean(R)) / (std(R) + eps)" in text
    assert "A_i = R_i - 0 * mean(R)        (eq. 0)" in text  # of the paper, with its spaces
    assert "arXiv:2501.00000" in text
    library = gather(made)
    parts = [f for f in library.slots["credit"].values() if f.paper == "made_000"]
    assert commands(library.works["made_000"], parts, library) == [
        "partita train made_000 --task arithmetic",
        "partita train grpo --task arithmetic --credit made000",
        "partita diff made_000 grpo",
        "partita claim made_000",
        "partita claim made_000 --check",
        "partita show made_000",
    ]
    bare = commands(library.works["made_009"], [], library)  # it states no claim
    assert bare == ["partita train made_009", "partita show made_009"]


def test_the_code_is_shown_whole(built, made):
    source = Path(registry.paper_module("made_000").__file__).read_text()
    text = (built / "papers" / "made_000.html").read_text()
    shown = re.search(r'<pre class="block source"[^>]*>(.*?)</pre>', text, re.S)[1]
    assert html.unescape(re.sub(r"</?span[^>]*>", "", shown)) == source
    assert '<span class="c"># &quot;quoted&quot; &amp; &lt;marked&gt;</span>' in shown


def test_a_slot_shows_its_parts_side_by_side(read):
    page = read["slots/credit.html"]
    parts = registry.index()["parts"]["credit"]
    assert page.tags.count("article") == len(parts)
    assert set(parts) <= set(page.ids)
    card = page.text[page.text.index("weight = 3.0") :]
    assert "In 1 recipe: made_003." in card[: card.index("weight = 4.0")]
    assert "From Work number 7." in page.text
    assert "weight = 7.0" in page.text
    recipes = [
        name
        for name in registry.index()["recipes"]
        if type(getattr(registry.recipe(name), "credit", None)).__name__ == "GAE"
    ]
    assert f"In {len(recipes)} recipes: {', '.join(recipes)}." in page.text


def test_text_from_outside_stays_text(made, tmp_path, monkeypatch):
    bad = " ".join(HOSTILE)
    fields = ("statement", "rule", "note", "treatment", "control", "task", "metric", "commit", "date")
    mappings = ("versions", "machine", "settings", "task_settings")
    entry = made_works.comparison("made_000", 0, tuning={bad: [bad]}, seed_list=[bad] * 8)
    entry |= dict.fromkeys(fields, bad) | {name: {bad: bad} for name in mappings}
    entry["dial"]["name"] = entry["dial"]["settings"][0]["label"] = entry["curves"]["x_name"] = bad
    index = registry.index() | {"papers": dict(registry.index()["papers"])}
    index["papers"]["made_000"] = index["papers"]["made_000"] | {"title": bad, "family": bad, "kind": bad}
    monkeypatch.setattr(registry, "index", lambda: index)
    page = alone(made, tmp_path, [entry])
    assert "script" not in page.tags and "img" not in page.tags
    for text in HOSTILE:
        assert page.text.count(text) > 10
    listing = Reader(site.pages(gather(tmp_path / "evidence"))["index.html"])
    assert listing.tags.count("script") == 1 and "img" not in listing.tags
    assert bad in listing.text
    assert bad in [found.get("data-family") for _, found in listing.attributes]


def test_a_source_that_is_no_web_address_is_no_link(made, tmp_path, monkeypatch):
    paper = registry.paper_module("made_000").PAPER
    for url, linked in (("javascript:alert(1)", False), ("https://example.org/paper", True)):
        monkeypatch.setattr(registry.paper_module("made_000"), "PAPER", type(paper)(**{**vars(paper), "url": url}))
        page = Reader(site.pages(gather(tmp_path))["papers/made_000.html"])
        assert (url in page.links) is linked


def test_evidence_of_no_work_is_named(made, tmp_path):
    (tmp_path / "nobody.json").write_text("[]")
    (tmp_path / "made_000.tuning.json").write_text("{}")
    text = Reader(site.pages(gather(tmp_path))["index.html"]).text
    assert "belong to no work: nobody.json." in text


def test_a_work_that_cannot_be_imported_has_its_page(made, tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(registry, "paper_module", absent)
    page = Reader(site.pages(gather(made))["papers/made_000.html"])
    assert "could not be imported here" in page.text
    assert "effect 0.120 [0.050, 0.200]" in page.text


def test_the_way_back_to_what_the_site_is_part_of(made, tmp_path):
    found = site.pages(gather(made), home="../index.html")
    assert "../index.html" in Reader(found["index.html"]).links
    assert "../../index.html" in Reader(found["papers/made_000.html"]).links


def test_the_same_input_gives_the_same_bytes(made, built, tmp_path):
    site.build(tmp_path / "again", made)
    for path in sorted(built.rglob("*")):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(built)).read_bytes() == path.read_bytes()


def test_malformed_evidence_leaves_the_former_site(made, tmp_path):
    out = tmp_path / "site"
    site.build(out, made)
    before = (out / "index.html").read_bytes()
    (tmp_path / "made_000.json").write_text('[{"key": "made_000", "statement": "s", "verdict": "maybe"}]')
    with pytest.raises(UserError, match=r"made_000\.json: entry 1\.verdict: expected one of holds, unclear, fails"):
        site.build(out, tmp_path)
    assert (out / "index.html").read_bytes() == before


def test_two_hundred_and_fifty_works(tmp_path, monkeypatch):
    index = made_works.library(tmp_path / "src", 250, "many_papers")
    monkeypatch.setattr(registry, "index", lambda: index)
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    folder = made_works.evidence(tmp_path / "evidence", 250)
    count = site.build(tmp_path / "site", folder)
    assert count == 1 + len(index["papers"]) + len(index["parts"])
    assert len(rows_of(tmp_path / "site")) == len(index["papers"]) >= 250


def test_write_site_says_where(made, tmp_path, monkeypatch):
    (tmp_path / "evidence").mkdir()
    monkeypatch.chdir(tmp_path)
    said = site.write_site(Path("pages"))
    assert re.fullmatch(r"wrote \d+ pages; open pages/index\.html", said)
    assert (tmp_path / "pages" / "index.html").is_file()
