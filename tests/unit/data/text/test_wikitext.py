"""Wikitext to text: what a reader sees is kept, and nothing of the markup is left."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.data.text.language_variants import resolve_variants
from wikillm.data.text.wikitext import DamagedWikitext, text_of_wikitext
from wikillm.data.types import WikiSite

MARKUP = (
    *("<!--", "-->", "<!-- x -->", "{{ name }}", "{{", "[[nodiscard]]", "[[File:A.jpg]]", "<ref>"),
    *("</ref>", "<ref>x</ref>", "1-{2}-3", "-{zh-hans:甲;zh-hant:乙}-", "{|", "|}", "__NOTOC__"),
    *("== x ==", "* x", "&nbsp", "<div>", "it's 2 > 1"),
)
UNCLOSED = ("nowiki", "pre", "syntaxhighlight", "code", "math", "ref", "gallery")
CUT = ("gallery", "score", "templatedata", "timeline", "graph", "hiero")
LITERAL_TAGS = ("nowiki", "pre", "syntaxhighlight", "source", "code")


@pytest.mark.parametrize("tag", LITERAL_TAGS)
@pytest.mark.parametrize("content", MARKUP)
def test_the_content_of_a_literal_region_is_text(tag, content):
    forms = [(tag, tag), (f"{tag.upper()} ", f"{tag.upper()} ")]
    if tag != "nowiki":
        forms.append((f'{tag} lang="c"', tag))
    for start, end in forms:
        region = f"<{start}>{content}</{end}>"
        rest = "乙，[[丙]]<ref>注</ref>。\n\n== 节 ==\n丁<!-- 注 -->戊"
        inside, after = text_of_wikitext(f"甲{region}{rest}").replace("\n", " ").split("乙，")
        assert inside.replace(" ", "") == f"甲{content}".replace(" ", "")
        assert after.split() == ["丙。", "节", "丁戊"]


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
        ("a<ref>x<ref>y</ref>b", "ab"),
        ("== A ==\n=== B ===\nb\n== C ==\n=== D ===\n", "A\n\nB\nb"),
        # regions
        ("甲<nowiki><!--</nowiki>乙", "甲<!--乙"),
        ("<code><nowiki>{{ name }}</nowiki></code>", "{{ name }}"),
        ("<code>a <nowiki>''b''</nowiki> ''c'' <var>d</var> &lt;e&gt;</code>", "a ''b'' c d <e>"),
        ("<nowiki>&lt;b&gt; &copy; &copy x &amp;lt;</nowiki>", "<b> © &copy x &lt;"),
        ("<pre><nowiki><b></nowiki>\n  x  y\n\n\n  z\n</pre>", "<b>\n  x  y\n\n\n  z"),
        ("前<pre>x</pre>后", "前\nx\n后"),
        ("用<syntaxhighlight lang=c inline>a[[b]]</syntaxhighlight>。", "用a[[b]]。"),
        ("和<source enclose=none>c</source>。", "和c。"),
        ("<source lang=py>\nif x:\n    y = '&lt;'\n</source>\n乙", "if x:\n    y = '&lt;'\n乙"),
        # what is separated by <nowiki/> is no mark
        ("a<nowiki/>b [<nowiki/>[x]] {<nowiki />{y}}", "ab [[x]] {{y}}"),
        ("{{<nowiki/>z|1}} [[<nowiki/>w]]", "{{z|1}} [[w]]"),
        ("<nowiki>{{</nowiki>tl|x}}与<nowiki>[[</nowiki>y]]", "{{tl|x}}与[[y]]"),
        ("L'<nowiki/>''homme''", "L'homme"),
        ("（<nowiki/>）甲", "甲"),
        ("<nowiki>* 甲</nowiki>\n<nowiki>|</nowiki> 乙", "* 甲\n| 乙"),
        # the tag that starts first wins
        ("<!-- <nowiki> -->甲<!-- </nowiki> -->乙", "甲乙"),
        ("<nowiki><code></nowiki>[[甲]]</code>", "<code>甲"),
        ("<syntaxhighlight><nowiki></syntaxhighlight>[[甲]]<nowiki>[[</nowiki>", "<nowiki>\n甲[["),
        # regions inside others
        ("<code><nowiki></code></nowiki></code>甲", "</code>甲"),
        ("<ref>a<nowiki></ref></nowiki>b</ref>甲", "甲"),
        ("<code><code>{{a}}</code></code>甲", "{{a}}甲"),
        ("<code><nowiki></code>甲<code><nowiki>{{x}}</nowiki></code>", "<nowiki>甲{{x}}"),
        ("[[a|<nowiki>]]</nowiki>]] {{nowrap|<nowiki>a|b</nowiki>}}", "]] a|b"),
        ("'''<nowiki>'''</nowiki>'''", "'''"),
        ("== <code>{{x}}</code> ==\n文", "{{x}}\n文"),
        ("{|\n| <nowiki>|}</nowiki>\n|}\n甲", "甲"),
        # never closed: the tag goes, the text stays
        *((f"<{tag}>甲 [[a|乙]]\n\n丙", "甲 乙\n\n丙") for tag in UNCLOSED),
        ("甲</nowiki>乙</pre>丙</ref>丁</code>", "甲乙丙丁"),
        ("甲<ref name=x>乙\n== 节 ==\n丙<ref>注</ref>丁", "甲乙\n\n节\n丙丁"),
        ("<code>甲，[[a|乙]]。<code>{{x}}</code>丙", "甲，乙。{{x}}丙"),
        ("HTML 的 <source> 元素 [[甲]]", "HTML 的 <source> 元素 甲"),
        # references
        ("甲<ref name=x/>乙<REF NAME='x' />丙<ref group='注'>[[a]]</ref>丁", "甲乙丙丁"),
        ("丁<references><ref name=x>y</ref></references>戊", "丁戊"),
        ("<!-- <ref> -->甲<!-- </ref> -->", "甲"),
        # formulas: short plain ones are text, others go
        ("<math>1-{2}-3</math>", "1-{2}-3"),
        ("设<math>x &lt; y</math>，<math>\\frac{a}{b}</math>", "设x < y，"),
        ("<chem>H2O</chem>，<math>a[[b]]</math>。", "H2O，a[[b]]。"),
        # content that is not shown
        *((f"甲<{tag}>{{{{x}} -{{y}}- [[z]] <!-- </{tag}>乙", "甲乙") for tag in CUT),
        ("甲<section begin=a />乙<templatestyles src='x.css'/>丙", "甲乙丙"),
        # characters written as entities are text
        ("&lt;br&gt;标签 &#91;&#91;x&#93;&#93; &lt;ref&gt;y", "<br>标签 [[x]] <ref>y"),
        ("&#123;&#123;a&#125;&#125; &#39;&#39;z", "{{a}} ''z"),
        ("a{{!}}b ''Eagle''{{'}}s", "a|b Eagle's"),
        # raised and lowered text
        ("3×10<sup>8</sup>米，10<sup>-8</sup>", "3×10⁸米，10⁻⁸"),
        ("10<sup>&minus;8</sup>，m<sup>2</sup>", "10⁻⁸，m²"),
        ("H<sub>2</sub>O，Ca<sup>2+</sup>", "H₂O，Ca²⁺"),
        ("SO<sub>4</sub><sup>2−</sup>，<sup>14</sup>C", "SO₄²⁻，¹⁴C"),
        ("log<sub>2</sub>8，1010<sub>2</sub>", "log₂8，1010₂"),
        ("x<sup>n</sup>，''x''<sub>''i''</sub>", "xⁿ，x_i"),
        ("2<sup>k</sup>，e<sup>iπx</sup>，T<sub>max</sub>", "2^k，e^(iπx)，T_max"),
        ("a<sup>n+1</sup>，2<sup>(k+1)</sup>，10<sup>8.5</sup>", "a^(n+1)，2^(k+1)，10^8.5"),
        ("10<SUP>10<sup>2</sup></SUP>", "10^(10²)"),
        ("10<sup><nowiki>8</nowiki></sup>，x{{su|b=2|p=8}}", "10⁸，x₂⁸"),
        ("10<sup>8米，H<sub>2O", "10^8米，H_2O"),
        ('10<span style="vertical-align: super">8</span>，10<big><sup>8</sup></big>', "10⁸，10⁸"),
        ("[[a|10<sup>8</sup>]]，{{nowrap|10<sup>8</sup>}}", "10⁸，10⁸"),
        ("10<sup>3 to 5</sup>，10<sup>−3~−5</sup>", "10^(3 to 5)，10^(−3~−5)"),
        ("10<sup>８</sup>，10<sup>''8''</sup>，注<sup>1、2</sup>", "10^８，10⁸，注1、2"),
        ("10{{上標|8}}，{{subsup|x|1|2}}，10{{Superscript|8}}", "10⁸，x₁²，10⁸"),
        ("the 1<sup>st</sup>, M<sup>me</sup>, O<sub>(l)</sub>", "the 1st, Mme, O(l)"),
        ("词<sup>[1]</sup>，<sup>a</sup>注", "词[1]，a注"),
        ("<small><sup>说明文字</sup></small>，<sup></sup>空", "说明文字，空"),
        ("10{{sup|8}}，H{{sub|2}}O，3{{e|8}}，{{10^|-3}}", "10⁸，H₂O，3×10⁸，10⁻³"),
        ("{{val|2.998|e=8|u=m/s}}", "2.998×10⁸ m/s"),
        ("{{val|1.5|0.2|e=3}}，{{val|7}}", "(1.5±0.2)×10³，7"),
        ("{{chem|H|2|O}}，{{chem|SO|4|2-}}", "H₂O，SO₄²⁻"),
        ("{{chem|C|n|H|2n+2}}，{{math|1=x<sup>2</sup> = 4}}", "C_nH_(2n+2)，x² = 4"),
        ("{{convert|100|km2|sqmi}}，{{convert|5|to|10|sqmi|km2}}", "100 km²，5–10 sq mi"),
        ("{{convert|6|ft|4|in|m}}，{{cvt|20|C}}", "6 ft 4 in，20 °C"),
        ("{{convert|3|Moilbbl/d}}，{{convert|2|e6acre}}", "3 million barrels/d，2 million acres"),
        ("{{convert|30|PD/sqmi}}，{{convert|2|x|3|m}}", "30/sq mi，2 × 3 m"),
        # rows of tables that do not pair go
        ("{| class=x\n| a\n! b\n\n正文，未闭合", "正文，未闭合"),
        ("{{s-start}}\n| a\n|-\n| b || c\n|}\n后", "后"),
        ("{{s-start}}\n! a\n|- style=x\n| b\n{{s-end}}\n|x| 后", "|x| 后"),
        ("前\n{|\n|}尾", "前\n尾"),
        ("[[!Kung]]人", "!Kung人"),
        # templates and functions
        ("{{chem2|SO4(2-)}}，{{chem2|2H2 + O2 -> 2H2O}}", "SO₄²⁻，2H₂ + O₂ → 2H₂O"),
        ("{{pi}}{{minus}}{{sqrt|2}}{{sqrt|x+1}}{{abs|y}}{{(}}{{))}}", "π−√2√(x+1)|y|{}}"),
        ("{{US$|5 million}}，{{€|3}}，{{As of|2020}}", "US$5 million，€3，As of 2020"),
        ("{{le|甲|A|乙}}{{link-ja|丙|C}}{{ill|丁|en|D|lt=戊}}{{ill|己|en|F}}", "乙丙戊己"),
        ("{{Template:nowrap|甲}}{{模板:lang|en|b}}{{columns-list|2|\n* 丙\n}}", "甲b\n- 丙"),
        ("{{formatnum:{{{1|5}}}}}，{{formatnum:[[甲|12]]}}，{{lc:A<nowiki/>B}}", "5，12，ab"),
        ("{{ucfirst:{{nowrap|ab}}}}{{#if:x|甲|乙}}{{#if:|甲|乙}}{{#ifeq:a|b|甲}}", "Ab甲乙"),
        ("{{PAGENAME}}是甲", "标题是甲"),
        ("* 甲\n: {|\n| a\n\n* b\n|}\n乙", "- 甲\n\n乙"),
        ("集合{x: |x|}与{|x|, 1}", "集合{x: |x|}与{|x|, 1}"),
        # addresses: Chinese text follows them without a space
        ("参见 https://example.org/a，这里有文字。后", "参见，这里有文字。后"),
        ("官网：http://a.b/?x=1&amp;y=2。成立于1990年", "官网：。成立于1990年"),
        ("'''News:''' x Tel:010-1234", "News: x Tel:010-1234"),
        # comments, and tags that only mark what is transcluded
        ("* 甲\n<!-- x -->\n* 乙\n  <!-- y --> <!-- z -->  \n* 丙", "- 甲\n- 乙\n- 丙"),
        ("甲<!-- a --><!-- b -->\n乙<!-- c -->\n\n丙", "甲\n乙\n\n丙"),
        ("<noinclude>\n== 甲 ==\n乙</noinclude>\n<translate>* 丙</translate>", "甲\n乙\n- 丙"),
        ('甲<ref name="a<b">注</ref>乙<ref name=a<!-- x -->>注</ref>丙', "甲乙丙"),
        # what is not shown, and readings
        ('甲<span style="display:none">乙</span>丙<div style="display: none;">丁</div>', "甲丙"),
        ("<ruby>東<rp>(</rp><rt>とう</rt><rp>)</rp></ruby>京", "東(とう)京"),
        ("文<h2>标题</h2>文二", "文\n标题\n文二"),
        # headings, lists
        ("甲\n= x = y\n== 甲 ==乙", "甲\n= x = y\n== 甲 ==乙"),
        ("; 术语 : 定义\n;甲{{x}}:乙\n:: 丙", "术语\n定义\n甲\n乙\n丙"),
        # entities as MediaWiki knows them; what names no character is text
        ("it&apos;s &lbrack;&lbrack;x]] &notit;", "it's [[x &notit;"),
        ("甲&#2;5&#3;乙&#xD83D;&#0;&#xFFFE;", "甲&#2;5&#3;乙&#xD83D;&#0;&#xFFFE;"),
        ("<nowiki>&#2;9&#3; &apos;</nowiki><code>&#x2;0&#x3;</code>", "&#2;9&#3; '&#x2;0&#x3;"),
        # empty brackets that the page has itself
        ("می\u200cخواهم a&shy;b&#8203;c", "می\u200cخواهم abc"),
        ("main()与f()（{{x}}），<code>g()</code><math>h()</math>", "main()与f()，g()h()"),
        # apostrophes
        ("''foo'''，\n'''foo''，\n''甲''' ''乙''", "foo'，\n'foo，\n甲' 乙"),
        ("'''{{x}}'''甲''[[File:a]]''", "甲"),
        ("''甲''<ref>x</ref>''乙''<ref name=x/>''丙''", "甲乙丙"),
        ("'<span>''x''</span>' [[d''e&#91;]]", "'x' d''e["),
        ("''Iliad'''s 与 '''b''''s", "Iliad's 与 b's"),
        ("'''''甲'''乙''，''丙'' '''丁'''", "甲乙，丙 丁"),
        ("'''''甲''''' 'a' ''b''", "甲 'a' b"),
        # prefixes of links
        ("[[Re:從零開始的異世界生活]]", "Re:從零開始的異世界生活"),
        ("[[CSI:犯罪现场]]与[[D.Gray-man]]", "CSI:犯罪现场与D.Gray-man"),
        ("[[NCIS:洛杉矶]][[Ys:III]][[Go: A]]", "NCIS:洛杉矶Ys:IIIGo: A"),
        ("[[K:甲]][[Fate:乙]]", "K:甲Fate:乙"),
        ("甲[[en:Beijing]][[JA:北京]][[zh-min-nan:Pak-kiaⁿ]][[simple:Beijing]]乙", "甲乙"),
        ("[[wikt:词]]，[[:en:Foo]]", "词，en:Foo"),
        ("[[甲 (乙)|]]，[[:Category:甲|]]，[[甲|<nowiki/>]]", "甲 (乙)，Category:甲，"),
        ("[[甲{{!}}乙]]，[[7%25]]，[[%E4%B8%AD]]，[[5%]]", "乙，7%，中，5%"),
        ("[[File%3AA.jpg|thumb|x]][[قط:x]][[ملف:a.png|[[x]]]][[Luokka:y]]", "قط:x"),
        ("[[en:Foo|富]]，[[Wikipedia:互助]]", "富，Wikipedia:互助"),
        ("甲[[commons:File:x.jpg]][[commons:Category:Y]][[s:论语]]", "甲论语"),
        ("甲[[ File :x.jpg|thumb|[[a]]]][[file_:y]]乙", "甲乙"),
        ("[[CATEGORY: z]]乙[[:Category:丙|丁]]", "乙丁"),
        ("[[媒体:w|戊]][[Media:w.ogg]]", "戊Media:w.ogg"),
    ],
)  # fmt: skip
def test_cases(wikitext, text):
    assert text_of_wikitext(wikitext, title="标题") == text


PIECES = [piece for piece in MARKUP if piece != "== x =="]
PIECES += ["<b>", "</div>", "{{{1|}}}", "[http://a.b x]", "&lt;br&gt;", "&amp;"]
PIECES += ["\n", "\n* ", "\n|", "甲", " "]


@given(st.sampled_from(LITERAL_TAGS), st.lists(st.sampled_from(PIECES), min_size=1, max_size=12))
def test_literal_regions_of_any_content(tag, pieces):
    content = "".join(pieces)
    shown = content
    if tag not in ("syntaxhighlight", "source"):
        shown = html.unescape(content.replace("&nbsp", "&amp;nbsp"))
    rest = "后文，[[a|链接]]。<ref>注</ref>\n\n== 节 ==\n末句。"
    got = text_of_wikitext(f"前文。<{tag}>{content}</{tag}>{rest}")
    assert "".join(got.split()) == "".join(f"前文。{shown}后文，链接。节末句。".split())


def test_sections_keep_their_heading_and_tail_sections_go():
    wikitext = (
        "导言\n== 历史 ==\n甲\n=== 早期 ===\n乙\n== 空 ==\n{{box}}\n"
        "== 参考文献 ==\n* [[x]]\n=== 书目 ===\nb\n== 文化 ==\n丙\n== 參見 ==\n* y\n"
        "== External links ==\n* z\n"
    )
    assert text_of_wikitext(wikitext) == "导言\n\n历史\n甲\n\n早期\n乙\n\n文化\n丙"


@pytest.mark.parametrize("title", ["来源", "來源:", "Literatur", "Литература"])
def test_sections_of_sources_are_kept_if_they_have_prose(title):
    prose = "这个名称来自当地的语言，[[甲|最早]]见于十三世纪的文献，" * 3
    sources = "* [[某人]]：《某书》，某出版社，2001年，第123页，{{ISBN|0}}\n" * 3
    shown = prose.replace("[[甲|最早]]", "最早")
    assert text_of_wikitext(f"甲\n== {title} ==\n{prose}<ref>x</ref>\n== 乙 ==\n丙") == (
        f"甲\n\n{title}\n{shown}\n\n乙\n丙"
    )
    assert text_of_wikitext(f"甲\n== {title} ==\n{sources}\n== 乙 ==\n丙") == "甲\n\n乙\n丙"


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
        ("-{ZH-CN:甲;zh-Hant-TW:乙}--{zh-Hans-CN:丙;zh-Hant:丁}-", "甲丙"),
        ("-{zh-hans:甲&amp;;zh-hant:乙}--{zh-tw:丙;zh-cn:&lt;;}-", "甲&amp;&lt;"),
        ("-{R|zh:a;zh-tw:b}--{sr-Cyrl;|x}--{zh-Hant-TW;zh-hk|y}-", "zh:a;zh-tw:bxy"),
        ("-{ban-x-palmleaf:a;ban:b}-", "a"),
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


def test_internal_marks_in_a_page_are_ignored():
    assert text_of_wikitext("甲\x020\x03乙\x01<nowiki>丙</nowiki>") == "甲0乙丙"


RUNS = (
    *("<nowiki>", "</nowiki>", "<code><nowiki></code>", "<ref><nowiki></ref>", "<code>", "<ref>"),
    *("<math>", "<nowiki/>", "__a", "'''a'''", "-{", "(,", " ,", "- ", "|", "<", "''", "=", "("),
    *("<br>", "{{a}}", "]]", "}}", "\n<!-- x -->", "'''", "http://a.b，"),
)


@pytest.mark.parametrize("part", RUNS)
@pytest.mark.parametrize("end", ["", "</code></ref></nowiki></math>\n"])
def test_long_runs_of_marks_are_cleaned_in_linear_time(part, end):
    got = text_of_wikitext(f"文字。{part * 20_000}\n== 节 ==\n{end}结尾")
    assert got.startswith("文字。")
    assert got.endswith("结尾")


@pytest.mark.parametrize(
    "text",
    [
        *("!Kung人居住在沙漠", "|x| 是绝对值", "||x|| 是范数", "|-5| = 5", "|+1| 与 |-1|", "a | b"),
        *("!important 很重要\n| 第二行", "| 一行\n\n| 又一行"),
    ],
)
def test_lines_that_begin_like_cells_are_text_outside_tables(text):
    assert text_of_wikitext(text) == text
    assert text_of_wikitext(f"{{|\n! h\n|-\n| c\n|}}\n{text}") == text


SWITCHES = (
    *("NOTOC", "notoc", "NoToc", "ForceToc", "noeditsection", "NOGALLERY", "hiddencat", "INDEX"),
    *("ΧΩΡΙΣΠΠ", "İÇİNDEKİLERYOK", "БЕЗОГЛАВЛЕНИЯ"),
    *("无目录", "無目錄", "不转换标题", "目次非表示", "KEIN_INHALTSVERZEICHNIS", "без_оглавления"),
)


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_go_in_any_case_and_language(name):
    assert text_of_wikitext(f"甲__{name}__乙\n__{name}____notoc__\n丙") == "甲乙\n\n丙"


def test_other_words_between_underscores_are_text():
    assert text_of_wikitext("甲＿＿目次非表示＿＿乙") == "甲乙"
    text = "__init__ 与 __FILE__、__index__、a__b__c、____"
    assert text_of_wikitext(text) == text


def test_prefixes_and_variants_depend_on_the_site():
    names = ((0, ""), (6, "Fil"), (14, "Kategori"), (-2, "Media"), (4, "Wikipedia"))
    sv = WikiSite(language="sv", namespaces=names)
    zh = WikiSite(language="zh")
    page = "[[Fil:S.jpg|miniatyr|250px|En bild]]a[[kategori: X]]b [[Wikipedia:Y]] {a}-{b}-{c}"
    assert text_of_wikitext(page, sv) == "ab Wikipedia:Y {a}-{b}-{c}"
    assert "miniatyr" not in text_of_wikitext(page.replace("250px|En bild", "x"), sv)
    assert text_of_wikitext("[[Fil:S.jpg|文字]]", zh) == "文字"
    page = "Qui&nbsp;? ''Oui'' : {{x}}, « non » !"
    assert text_of_wikitext(page, WikiSite(language="fr")) == "Qui ? Oui :, « non » !"
    assert text_of_wikitext("a {{x}}: b {{y}}?") == "a: b?"
    assert text_of_wikitext("-{zh-hans:甲;zh-hant:乙}- x-{未完", zh) == "甲 x未完"
