"""Chinese pages: one term per concept, punctuation, the figures of the English tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = [*sorted((REPO / "docs").rglob("*.zh.md")), REPO / "README.zh-CN.md"]
TWINS = [page for page in PAGES if page.name.endswith(".zh.md")]
CARD = REPO / "wikillm/export/templates/card.zh.md.j2"
INSTEAD = {
    "代币": "词元",
    "token 存储": "词元存储",
    "数据仓库": "词元存储",
    "存储库": "词元存储",
    "切片": "分片",
    "碎片": "分片",
    "检查站": "检查点",
    "存档点": "检查点",
    "房间": "模块",
    "热身": "预热",
    "困惑性": "困惑度",
    "梯度累计": "梯度累积",
    "微批": "micro-batch",
    "ZeRO 级别": "ZeRO 阶段",
    "词元 ID": "词元 id",
    "看门狗": "监护进程",
    "代理进程": "监护进程",
    "产品手册": "规格书",
    "词元每秒": "词元/s",
    "nats": "nat",
    "文件夹": "目录",
    "您": "你",
}
"""Words that mean something else, or a second word for a term of docs/glossary.zh.md."""
HANZI = "\u4e00-\u9fff"
SPELLING = {
    "no space between hanzi and Latin": rf"[{HANZI}][A-Za-z0-9`]|[A-Za-z0-9`%][{HANZI}]",
    "half-width punctuation after hanzi": rf"[{HANZI}][,;:?!.](?![A-Za-z])",
    "half-width parenthesis at hanzi": rf"[{HANZI}] ?\([^)]|\)[{HANZI}]",
    "a space at full-width punctuation": r" [，。；：、（）]|[，。；：、（] ",
    "a space between hanzi": rf"[{HANZI}] [{HANZI}]",
}


def name(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


def prose(page: Path) -> list[tuple[int, str]]:
    """Numbered lines; without blocks of code, link targets and HTML, and `c` for inline code."""
    text = re.sub(
        r"^```.*?^```",
        lambda block: "\n" * block[0].count("\n"),
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    text = re.sub(r"<[^>\n]*>", "", text)
    text = re.sub(r"`[^`\n]*`", "`c`", text)
    text = re.sub(r"\]\([^)\n]*\)", "]", text)
    return list(enumerate(text.splitlines(), start=1))


def table_rows(page: Path) -> list[list[str]]:
    lines = (line for _, line in prose(page) if line.startswith("|"))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("page", [*PAGES, CARD], ids=name)
def test_each_concept_has_one_term(page: Path) -> None:
    wrong = [
        f"{name(page)}:{number}: {word}, not {right}"
        for number, line in prose(page)
        for word, right in INSTEAD.items()
        if word in line
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_punctuation_and_spaces(page: Path) -> None:
    wrong = [
        f"{name(page)}:{number}: {kind}: {line[max(0, found.start() - 9) : found.end() + 9]}"
        for number, line in prose(page)
        for kind, pattern in SPELLING.items()
        for found in re.finditer(pattern, line)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", TWINS, ids=name)
def test_tables_have_the_figures_of_the_english_page(page: Path) -> None:
    """Rows and cells are equal in number, and a cell that is only a figure is the same."""
    english = table_rows(page.with_name(page.name.replace(".zh.md", ".md")))
    chinese = table_rows(page)
    assert [len(row) for row in english] == [len(row) for row in chinese]
    wrong = [
        f"{left} against {right}"
        for row, twin in zip(english, chinese, strict=True)
        for left, right in zip(row, twin, strict=True)
        if left != right and re.fullmatch(r"[\d.,/() %-]+", left)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", TWINS, ids=name)
def test_links_stay_in_chinese(page: Path) -> None:
    """Where a repository is read without the site, `data.md` would be the English page."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)\.md[)#]", page.read_text(encoding="utf-8"))
    wrong = [f"{link}.md" for link in links if (page.parent / f"{link}.zh.md").exists()]
    assert not wrong, f"{name(page)} links to English pages: {wrong}"


def anchors(page: Path) -> set[str]:
    """As the site makes them of headings, and those that a page sets itself."""
    text = page.read_text(encoding="utf-8")
    plain = [re.sub(r"<[^>]*>", "", found) for found in re.findall(r"^#+ (.*)$", text, re.M)]
    slugs = {re.sub(r"[^\w\- ]", "", found.lower()).strip().replace(" ", "-") for found in plain}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def test_anchors_of_links_exist() -> None:
    wrong = [
        f"{name(page)}: {path}#{anchor}"
        for page in sorted((REPO / "docs").rglob("*.md"))
        for path, anchor in re.findall(
            r"\]\((?!https?:)([^)#\s]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8")
        )
        if anchor not in anchors((page.parent / path).resolve() if path else page)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_glossaries_have_the_same_terms() -> None:
    english, chinese = (
        [row[:2] for row in table_rows(REPO / "docs" / page)][2:]
        for page in ("glossary.md", "glossary.zh.md")
    )
    assert len(english) > 40
    assert english == chinese


def test_the_pages_use_the_terms_of_the_glossary() -> None:
    """A term that no page uses has another word there, or none is needed."""
    text = "\n".join(
        line for page in TWINS for _, line in prose(page) if page.stem != "glossary.zh"
    )
    terms = [row[1].split("、") for row in table_rows(REPO / "docs/glossary.zh.md")[2:]]
    unused = [term for term in terms if not any(word in text for word in term)]
    assert not unused, f"in docs/glossary.zh.md alone: {unused}"
