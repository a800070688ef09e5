"""The page shows the values of a run's files, escaped, and loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.evals.results import write_results
from wikillm.observe.sinks import JsonlSink, Sample, read_metrics, read_records
from wikillm.report.background import PageRefresh
from wikillm.report.ledger_section import digest_of, read_history
from wikillm.report.page import refresh_page, render
from wikillm.report.run_files import read_run

TAGS = {*("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "a", "nav")}
TAGS |= {"header", "dl", "div", "dt", "dd", "small", "table", "tr", "th", "td", "span", "code"}
TAGS |= {"details", "summary", "figure", "figcaption", "b", "svg", "line", "text", "polyline"}
TAGS |= {"circle"}
VOID = {"meta"}
MAX_BYTES = 2_000_000


class Reader(HTMLParser):
    """Tags and text of a page; fails for a tag that closes what is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)


def read_self_contained(page: str) -> Reader:
    """The page, once nothing in it runs or is loaded from elsewhere."""
    found = Reader(page)
    assert {tag for tag, _ in found.tags} <= TAGS
    for tag, attributes in found.tags:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
        if "href" in attributes:
            assert tag == "a" and (attributes["href"] or "").startswith("#")
    assert "url(" not in page and "@import" not in page
    return found


def copied(run: Path, to: Path) -> Path:
    """The run without its checkpoints."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints")))


def test_a_run_writes_its_own_page(survivor: Path) -> None:
    found = read_self_contained((survivor / "report.html").read_text(encoding="utf-8"))
    metrics = read_metrics(survivor / "metrics.jsonl")
    evaluation = [e for e in read_records(survivor / "events.jsonl") if e["kind"] == "eval"][-1]
    data = json.loads((survivor / "data.json").read_text())
    plan = json.loads((survivor / "plan.json").read_text())
    assert "done, step 8 of 8: the horizon was reached" in found.text
    assert f"{metrics[-1]['loss']:.4f}" in found.text
    assert f"{evaluation['eval_loss']:.4f}" in found.text
    assert f"{evaluation['bits_per_byte']:.4f}" in found.text
    assert f"{plan['parameters']:,}" in found.text
    for split in data["splits"].values():
        assert f"{split['tokens']:,}" in found.text
    assert f"{data['funnel']['kept_records']:,} records" in found.text
    assert data["sources"][0]["sha256"][:12] in found.text
    assert "train.learning_rate 0.01 command line: train.learning_rate=1e-2" in found.text


def test_starts_and_faults_are_listed(survivor: Path) -> None:
    found = read_self_contained(render([read_run(survivor)]))
    assert "skipping checkpoint-8" in found.text
    rows = found.text[found.text.index("how it ended") :]
    assert "1 to 8" in rows and "4 steps done" in rows  # steps 5 to 8 of the first start
    assert "5 to 8" in rows
    marks = [attributes for _, attributes in found.tags if attributes.get("class") == "mark"]
    assert marks and "resumed before step 5 (start 2)" in found.text


def test_the_ledger_is_summarized(survivor: Path, tmp_path: Path) -> None:
    run = copied(survivor, tmp_path / "run")
    text = read_self_contained(render([read_run(run)])).text
    ledger = text[text.index("digest of all steps") :]
    assert "steps trained again 4" in ledger
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join([*lines[:3], b"{}\n", *lines[3:]]))
    damaged = read_self_contained(render([read_run(run)])).text
    assert "is damaged. line 4" in damaged
    (run / "ledger.jsonl").unlink()
    assert "The run has no ledger." in read_self_contained(render([read_run(run)])).text


def test_a_command_on_the_page_can_be_pasted(survivor: Path, tmp_path: Path) -> None:
    run = copied(survivor, tmp_path / "my run")
    text = read_self_contained(render([read_run(run)])).text
    assert f"wikillm report '{run}'" in text and f"wikillm audit '{run}'" in text


def test_abandoned_evaluations_are_left_out(survivor: Path) -> None:
    events = read_records(survivor / "events.jsonl")
    at_8 = [e for e in events if e["kind"] == "eval" and e["step"] == 8]
    assert len(at_8) == 2
    current = read_run(survivor).current
    assert [e for e in current if e["kind"] == "eval" and e["step"] == 8] == at_8[1:]


def test_markup_in_values_is_escaped(survivor: Path, tmp_path: Path, markup: str) -> None:
    run = copied(survivor, tmp_path / markup.replace("/", ""))
    sink = JsonlSink(run)
    sink.start({})
    sink.log(8, {f"eval_loss/{markup}": 1.0, "eval_loss": 1.0}, "eval")
    sink.text(8, [Sample(markup, f"\x1b[31m\u202e{markup}")])
    sink.finish(3, markup)
    part = {"bits_per_byte": 1.0, "perplexity": 9.0, "tokens": 1, "text_bytes": 1, "documents": 1}
    overall = {"questions": 4, "accuracy": 0.25, "interval": [0.1, 0.9], "verdict": markup}
    task = {"task": markup, "shots": 0, "overall": overall, "subjects": {}}
    values = {"text": {**part, "by_source": {markup: part}}, "tasks": [task]}
    write_results(run / "evals" / "a.json", {"step": 8}, values)
    write_results(run / "evals" / "b.json", {"step": 8}, {"tasks": [{"task": "damaged"}]})
    (run / "exit.json").write_text(json.dumps({"code": 3, "meaning": markup, "reason": markup}))
    log = f"2026-01-01 00:00:00,000 WARNING wikillm: {markup}\n{markup}\n"
    (run / "logs" / "rank_0.log").write_text(log)
    data = json.loads((run / "data.json").read_text())
    data["sources"][0]["path"] = markup
    data["funnel"]["dropped"] = [{"reason": markup, "records": 1, "characters": 2, "is_bad": True}]
    (run / "data.json").write_text(json.dumps(data))
    settings = (run / "config.resolved.yaml").read_text()
    name = f"name: {json.dumps(markup + chr(0x1B) + chr(0x202E))}"
    named = re.sub(r'name: "[^"]*"', lambda _: name, settings, count=1)
    (run / "config.resolved.yaml").write_text(named)
    document = {"source": markup, "offset": 12, "document": 3}
    batch = {"rank": 1, "micro_step": 0, "nonfinite": {"loss": "nan"}, "documents": [document]}
    (run / "diverged.json").write_text(json.dumps({"step": 7, "micro_batches": [batch]}))
    page = render([read_run(run)])
    found = read_self_contained(page)
    assert f"1 1 nan {' '.join(markup.split())} 12 3" in found.text
    assert found.text.count("<script>alert(1)</script>") >= 10
    assert "25.0% 10.0% to 90.0%" in found.text, "the evaluation's row"
    assert "damaged" not in found.text[found.text.index("Tasks") : found.text.index("Other texts")]
    assert not {"\x1b", "\u202e"} & set(page)
    both = read_self_contained(render([read_run(run), read_run(survivor)]))
    assert "<script>alert(1)</script>" in both.text


@pytest.mark.parametrize(
    "missing",
    ["config.resolved.yaml", "data.json", "plan.json", "environment.json", "outcome.json",
     "exit.json", "events.jsonl", "metrics.jsonl", "run.json", "logs"],
)  # fmt: skip
def test_a_part_that_is_missing_or_damaged_is_left_out(
    survivor: Path, tmp_path: Path, missing: str
) -> None:
    run = copied(survivor, tmp_path / "run")
    if missing == "logs":
        shutil.rmtree(run / missing)
    else:
        (run / missing).write_text('{"half": ["of')
        read_self_contained(render([read_run(run)]))
        (run / missing).unlink()
    found = read_self_contained(render([read_run(run)]))
    assert ("Written" in found.text) and (missing != "exit.json" or "no end recorded" in found.text)


def test_the_page_of_a_long_run_is_small(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sink = JsonlSink(run)
    sink.start({"plan": {"world_size": 8}})
    rows = [
        {"step": n, "tokens": n * 1000, "loss": 10 / (1 + n % 977), "learning_rate": 1e-3,
         "grad_norm": 1.0, "tokens_per_second": 1e5, "segment": 0, "time": 1e9 + n}
        for n in range(1, 5_001)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(0, 5_000, 50):
        sink.log(step, {"eval_loss": 3.0, "bits_per_byte": 1.0, "eval_tokens": 10}, "eval")
        sink.text(step, [Sample(f"{n}" * 500, "长" * 1500) for n in range(20)])
    page = render([read_run(run)])
    assert 50_000 < len(page.encode()) < MAX_BYTES
    read_self_contained(page)


def test_several_runs_are_overlaid(
    survivor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(survivor, tmp_path / "other")
    settings = (other / "config.resolved.yaml").read_text()
    changed = settings.replace("learning_rate: 0.01 ", "learning_rate: 0.125 ")
    assert changed != settings
    (other / "config.resolved.yaml").write_text(changed)
    out = tmp_path / "pages" / "both.html"
    words = ["report", str(survivor), str(other), "--out", str(out), "--price", "7200"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(out)
    found = read_self_contained(out.read_text(encoding="utf-8"))
    differing = found.text[found.text.index("Settings that differ") :]
    assert "train.learning_rate 0.01 0.125" in differing
    assert "train.max_steps" not in differing and "run.dir" not in differing
    lines = [a for tag, a in found.tags if tag == "polyline" and a.get("points", "") != "0,6 26,6"]
    assert {line["class"] for line in lines} >= {"c0", "c1"}
    assert "ledger's digest cost" in found.text
    digest = digest_of(read_history(survivor))  # type: ignore[arg-type]
    assert found.text.count(digest) == 2  # the same tokens in both


def test_the_cost_is_price_times_device_hours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": n, "tokens": n, "loss": 1.0, "segment": 0, "time": 1000.0 + 3600 * n,
             "energy_joules": 1.8e6 * n} for n in (0, 1, 2)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {"kind": "start", "segment": 0, "time": 1000.0, "world_size": 4}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    found = read_self_contained(render([read_run(run)], price=2.5))
    assert "cost 20.00" in found.text  # 2 hours of 4 devices
    assert "energy 4 kWh" in found.text  # 1 kWh of rank 0, times 4


def test_a_folder_that_is_not_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_the_page_is_refreshed_by_a_separate_process(survivor: Path, tmp_path: Path) -> None:
    run = copied(survivor, tmp_path / "run")
    (run / "report.html").unlink()
    refresh = PageRefresh(run, every=0.0)
    refresh.refresh()
    process = refresh._process
    assert process is not None and process.wait(timeout=120) == 0
    read_self_contained((run / "report.html").read_text(encoding="utf-8"))
    refresh.close()
    soon = PageRefresh(run)
    soon.refresh()
    assert soon._process is None, "the run has just begun"


def test_a_page_that_cannot_be_written_is_a_warning(
    survivor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(survivor, tmp_path / "run")
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    refresh_page(run)
    assert "report.html was not written" in capsys.readouterr().err
    refresh = PageRefresh(run, every=0.0)
    refresh.refresh()
    assert refresh._process is not None and refresh._process.wait(timeout=120) != 0
    refresh.refresh()
    assert "report.html was not refreshed" in capsys.readouterr().err
    refresh.close()
