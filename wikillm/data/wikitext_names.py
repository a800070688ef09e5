"""What names mean in wikitext: link prefixes, tail sections and templates that carry running text.

Tables only, in the languages that this project is used with first (Chinese in both scripts, English) and some
more. A template that is not listed is dropped: most are boxes, notes and formatting.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.replace("\n", " ").split(",") if name.strip())


DROPPED_PREFIXES = _names("""
    file, image, media, 文件, 檔案, 档案, 图像, 圖像, 图片, 圖片, 媒体, 媒體, ファイル, 画像, 파일, 그림, файл, картинка,
    изображение, медия, datei, bild, fichier, archivo, imagen, immagine, ficheiro, arquivo, imagem, bestand, plik, tập tin,
    category, 分类, 分類, カテゴリ, 분류, категория, kategorie, catégorie, categoría, categoria, kategoria, thể loại
""")
"""Links with these prefixes show a picture or sort the page; they are no text. Compared in lower case."""

TAIL_SECTIONS = _names("""
    references, reference, notes, note, footnotes, citations, notes and references, references and notes, sources,
    works cited, bibliography, further reading, external links, external link, see also, additional reading, gallery,
    selected bibliography, explanatory notes, notes and citations, citations and references, general references,
    参考文献, 参考资料, 参考书目, 参考来源, 参考链接, 参考, 参考文献与注释, 参考资料与注释, 注释, 注释与参考文献, 注释和参考文献, 注解, 註解,
    脚注, 附注, 资料来源, 来源, 引用, 引注, 外部链接, 外部连接, 扩展阅读, 延伸阅读, 相关条目, 相关链接, 参见, 参看, 另见, 參見, 參看, 另見,
    參考文獻, 參考資料, 參考書目, 參考來源, 參考連結, 參考, 註釋, 註釋與參考文獻, 注釋, 腳註, 腳注, 附註, 資料來源, 來源, 引註,
    外部連結, 外部鏈接, 外部連接, 延伸閱讀, 擴展閱讀, 相關條目, 相關連結, 相關鏈接, 畫廊, 画廊, 图集, 圖集, 图库, 圖庫,
    脚注・出典, 出典, 関連項目, 外部リンク, 참고 문헌, 각주, 외부 링크, 같이 보기,
    източници, бележки, външни препратки, вижте също, литература, примечания, ссылки, см. также,
    einzelnachweise, weblinks, literatur, siehe auch, notes et références, liens externes, voir aussi, bibliographie,
    referencias, enlaces externos, véase también, bibliografía
""")
"""Sections of lists and links, cut with all their subsections. Compared in lower case."""

FIRST_ARGUMENT = _names("""
    nowrap, nobr, nobreak, small, smaller, big, bigger, larger, large, em, strong, abbr, tooltip, sup, sub, ruby, ruby-ja,
    僻字, mono, var, mvar, val, num, formatnum, nihongo, nihongo2, le, link-en, link-ja, link-de, link-fr, link-ru, ilh, ill,
    illm, 内链, interlanguage link, internal link helper, keypress, notatypo, not a typo, sic, center, resize, visible anchor,
    vanchor, linktext, wikt
""")
"""{{nowrap|TEXT}}: the first argument is what a reader sees."""

QUOTES = frozenset({"quote", "blockquote", "cquote", "quotation", "quote frame", "bquote", "引用", "quotation2", "諺"})
"""{{quote|TEXT|author}}: a paragraph of its own."""

LITERALS = {
    "ndash": " – ", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "spaced en dash": " – ", "–": " – ", "en dash": "–",
    "mdash": "—", "em dash": "—", "—": "—", "spaced mdash": " — ", "nbsp": " ", "space": " ", "thinsp": " ", "nnbsp": " ",
    "·": " · ", "•": " · ", "dot": " · ", "middot": " · ", "bull": " · ", "!": "|", "=": "=", "'": "'", "\"": "\"", "'s": "'s",
    "pound": "£", "times": "×", "year": "", "break": "\n", "clear": "", "-": "", "bc": "BC", "ad": "AD",
    "shy": "", "zwsp": "", "zwj": "", "zwnj": "", "no.": "No. ", "number sign": "#",
}  # fmt: skip
"""Templates without arguments that stand for a character."""

RANGE_WORDS = {
    "to": "–",
    "-": "–",
    "–": "–",
    "and": " and ",
    "or": " or ",
    "by": " by ",
    "x": " × ",
    "×": " × ",
    "+/-": " ± ",
}
"""{{convert|5|to|10|km}}: words between two values."""
