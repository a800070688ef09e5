"""Wikitext to text: what stays, what goes, and that nothing of the markup is left."""

from __future__ import annotations

import pytest

from wikillm.data.text.language_variants import resolve_variants
from wikillm.data.text.wikitext import DamagedWikitext, text_of_wikitext


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''北京'''，''中国''的[[首都]]，见[[上海市|上海]]。", "北京，中国的首都，见上海。"),
        ("a{{citation needed|date=May}} b", "a b"),
        ("甲（{{lang|en|Beijing}}，{{IPA|x}}）乙", "甲（Beijing）乙"),
        ("甲（{{bd|1900年|1950年}}）乙", "甲乙"),
        ("{{le|图灵机|Turing machine}}与{{tsl|en|Lambda|λ演算}}", "图灵机与λ演算"),
        ("{{convert|5|km|mi}} and {{convert|5|to|10|kg}}", "5 km and 5–10 kg"),
        ("1900{{ndash}}1950, {{frac|1|2}}, {{formatnum:12345}}", "1900 – 1950, 1/2, 12345"),
        ('x<ref name=a>{{cite|y}} [[z]]</ref>y<ref name="a" />z<!-- no\nno -->!', "xyz!"),
        ("[[File:A.jpg|thumb|left|A [[caption]] of {{x}}]]文字", "文字"),
        (
            "[[文件:A.jpg|缩略图|说明]][[圖像:B.png]][[檔案:C.svg|thumb|x]][[Image:d.gif]]文字",
            "文字",
        ),
        ("文字[[Category:A]][[分类:B]][[分類:C|D]]", "文字"),
        ("[[:Category:A|甲]]与[[en:Beijing]]乙", "甲与乙"),
        ("{|class=wikitable\n|-\n! a !! b\n|-\n| c || d\n|}\n之后", "之后"),
        ("{{Infobox\n| a = {{b|c}}\n| d = [[e]]\n}}\n正文", "正文"),
        ("<gallery>\nA.jpg|说明\n</gallery>正文<timeline>x</timeline>", "正文"),
        ("设<math>x</math>为<math>\\frac{a}{b}</math>。", "设x为。"),
        ("[https://a.b 链接] [https://a.b] https://a.b/c 后", "链接 后"),
        ("a&nbsp;b&amp;c &lt;x&gt; __NOTOC__ __无目录__", "a b&c <x>"),
        ("* 甲\n** 乙\n# 丙\n: 丁", "- 甲\n- 乙\n- 丙\n丁"),
        ("甲<br/>乙<small>丙</small><nowiki>[[丁]]</nowiki>", "甲\n乙丙[[丁]]"),
        ("{{quote|话语|某人}}后", "话语\n后"),
        ("甲\n\n\n\n\n乙\r\n丙", "甲\n\n乙\n丙"),
        ("a<ref>b", "ab"),
        ("a<ref>x</ref>b", "ab"),
        ('a<ref name="x"/>b', "ab"),
        ("a<ref>x<ref>y</ref>b", "ab"),
        ("a</ref>b", "ab"),
        ("== A ==\n=== B ===\nb\n== C ==\n=== D ===\n", "A\n\nB\nb"),
    ],
)
def test_cases(wikitext, text):
    assert text_of_wikitext(wikitext) == text


def test_marks_that_do_not_pair_go():
    got = text_of_wikitext("[[Foo (bar)|]]{{unclosed| 甲 [[x")
    assert not any(mark in got for mark in ("{{", "[[", "]]"))


def test_sections_keep_their_heading_and_tail_sections_go():
    wikitext = (
        "导言\n== 历史 ==\n甲\n=== 早期 ===\n乙\n== 空 ==\n{{box}}\n"
        "== 参考文献 ==\n* [[x]]\n=== 书目 ===\nb\n== 文化 ==\n丙\n== 參見 ==\n* y\n"
        "== External links ==\n* z\n"
    )
    assert text_of_wikitext(wikitext) == "导言\n\n历史\n甲\n\n早期\n乙\n\n文化\n丙"


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("-{zh-hans:计算机;zh-hant:電腦}-", "计算机"),
        ("-{zh-tw:電腦;zh-cn:计算机;zh-hk:電腦}-", "计算机"),
        ("-{zh-hk:甲;zh-tw:乙}-", "甲"),
        ("-{A|zh-hans:甲;zh-hant:乙;}-", "甲"),
        ("-{R|XML}--{重复}-", "XML重复"),
        ("-{T|zh-hans:标题;zh-hant:標題}--{H|zh-cn:甲;zh-tw:乙}-文", "文"),
        ("-{zh-hans:[[甲|a]]:b;zh-hant:乙}-", "[[甲|a]]:b"),
        ("-{zh-hans:外-{内}-;zh-hant:x}-", "外内"),
        ("-{zh;zh-hans;zh-hant|馀}-", "馀"),
        ("x-{未完", "x-{未完"),
        ("-{sr-ec:Београд; sr-el:Beograd}-", "Београд"),
        ("{{a}}-{{b}}-{{c}}", "{{a}}-{{b}}-{{c}}"),
        ("-{{{lang|en|x}}}-", "{{lang|en|x}}"),
        ("-{Windows|x}-", "Windows|x"),
    ],
)
def test_language_variants(wikitext, text):
    assert resolve_variants(wikitext) == text


@pytest.mark.parametrize(
    "part", ["{{", "[[", "{{a|", "[[a|", "<ref ", "<div ", "<b>", "{|\n", "[http://a.b "]
)
def test_pages_with_too_many_unpaired_marks_are_refused(part):
    with pytest.raises(DamagedWikitext):
        text_of_wikitext(part * 20_000 + "\n文字")


@pytest.mark.parametrize(
    "part", ["<ref>", "-{", "(,", " ,", "- ", "|", "<", "''", "=", "(", "<br>", "{{a}}", "]]", "}}"]
)
def test_long_runs_of_marks_are_cleaned(part):
    got = text_of_wikitext("文字。" + part * 20_000 + "\n结尾")
    assert got.startswith("文字。")
    assert got.endswith("结尾")
