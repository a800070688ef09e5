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

OTHER_PREFIXES = _names("""
    用户, 用戶, 使用者, 用户讨论, 用戶討論, 使用者討論, 讨论, 討論, 对话, 對話, 维基百科, 維基百科, 维基百科讨论, 維基百科討論, 项目, 專案, 模板, 樣板,
    样板, 模板讨论, 模板討論, 樣板討論, 帮助, 幫助, 使用說明, 帮助讨论, 幫助討論, 文件讨论, 檔案討論, 图像讨论, 圖像討論, 分类讨论, 分類討論, 特殊,
    主题, 主題, 模块, 模組
""")
"""Prefixes of titles that are not articles, in exports of Chinese wikis that neither number nor list them."""

INTERLANGUAGE_PREFIXES = _names("""
    aa, ab, abs, ace, ady, af, ak, als, alt, am, ami, an, ang, ann, anp, ar, arc, ary, arz, as, ast, atj, av, avk, awa, ay,
    az, azb, ba, ban, bar, bat-smg, bbc, bcl, bdr, be, be-tarask, be-x-old, bew, bg, bh, bi, bjn, blk, bm, bn, bo, bpy, br,
    bs, btm, bug, bxr, ca, cbk-zam, cdo, ce, ceb, ch, cho, chr, chy, ckb, co, cr, crh, cs, csb, cu, cv, cy, da, dag, de, dga,
    din, diq, dsb, dtp, dty, dv, dz, ee, egl, el, eml, en, eo, es, et, eu, ext, fa, fat, ff, fi, fiu-vro, fj, fo, fon, fr,
    frp, frr, fur, fy, ga, gag, gan, gcr, gd, gl, glk, gn, gom, gor, got, gpe, gsw, gu, guc, gur, guw, gv, ha, hak, haw, he,
    hi, hif, ho, hr, hsb, ht, hu, hy, hyw, hz, ia, iba, id, ie, ig, igl, ii, ik, ilo, inh, io, is, it, iu, ja, jam, jbo, jv,
    ka, kaa, kab, kaj, kbd, kbp, kcg, kg, kge, ki, kj, kk, kl, km, kn, knc, ko, koi, kr, krc, krl, ks, ksh, ku, kus, kv, kw,
    ky, la, lad, lb, lbe, lez, lfn, lg, li, lij, lld, lmo, ln, lo, lrc, lt, ltg, lv, lzh, mad, mai, map-bms, mdf, mg, mh,
    mhr, mi, min, mk, ml, mn, mni, mnw, mo, mos, mr, mrj, ms, mt, mus, mwl, my, myv, mzn, na, nah, nan, nap, nb, nds, nds-nl,
    ne, new, ng, nia, nl, nn, no, nov, nqo, nr, nrm, nso, nup, nv, ny, oc, olo, om, or, os, pa, pag, pam, pap, pcd, pcm, pdc,
    pfl, pi, pih, pl, pms, pnb, pnt, ps, pt, pwn, qu, rm, rmy, rn, ro, roa-rup, roa-tara, rsk, ru, rue, rup, rw, sa, sah, sat,
    sc, scn, sco, sd, se, sg, sgs, sh, shi, shn, shy, si, simple, sk, skr, sl, sm, smn, sn, so, sq, sr, srn, ss, st, stq, su,
    sv, sw, syl, szl, szy, ta, tay, tcy, tdd, te, tet, tg, th, ti, tig, tk, tl, tly, tn, to, tok, tpi, tr, trv, ts, tt, tum,
    tw, ty, tyv, udm, ug, uk, ur, uz, ve, vec, vep, vi, vls, vo, vro, wa, war, wo, wuu, xal, xh, xmf, yi, yo, yue, za, zea,
    zgh, zh, zh-cfr, zh-classical, zh-cn, zh-min-nan, zh-tw, zh-yue, zu
""")
"""Codes of the editions of Wikipedia. `[[en:Beijing]]` is a link in the margin, no text. Compared in lower case."""

PROJECT_PREFIXES = _names("""
    w, wikt, wiktionary, b, wikibooks, q, wikiquote, s, wikisource, n, wikinews, v, wikiversity, voy, wikivoyage, c, commons,
    m, meta, metawikipedia, species, wikispecies, d, wikidata, mw, mediawikiwiki, wmf, wikimedia, foundation, incubator,
    phab, phabricator, bugzilla, outreach, wikitech
""")
"""Sister projects: `[[wikt:word]]` shows its title. Compared in lower case."""

CONVERTED_LANGUAGES = _names("zh, gan, wuu, sr, sh, kk, ku, iu, tg, uz, crh, shi, ban, ike")
"""Languages of wikis on which `-{...}-` is language conversion; elsewhere it is text."""

SWITCHES = _names("""
    toc, notoc, forcetoc, noeditsection, nogallery, notitleconvert, notc, nocontentconvert, nocc, newsectionlink,
    nonewsectionlink, hiddencat, noindex, staticredirect, expectunusedcategory, expectunusedtemplate, noglobal, archivedtalk,
    notalk, expectedunconnectedpage, expectwithoutscans, noautonumber, nosearch, norelated,
    目录, 目錄, 无目录, 無目錄, 不显目录, 不顯目錄, 强显目录, 強顯目錄, 强制目录, 強制目錄, 强行显示目录, 无段落编辑, 無段落編輯, 无编辑段落, 無編輯段落,
    不显编辑段落, 不顯編輯段落, 无图库, 無圖庫, 不转换标题, 不轉換標題, 不转换内容, 不轉換內容, 新段落链接, 新段落鏈接, 新段落連結, 无新段落链接,
    無新段落連結, 隐藏分类, 隱藏分類, 索引, 无索引, 無索引, 不索引, 静态重定向, 靜態重定向, 预期未使用分类, 預期未使用分類, 消歧义, 消歧義,
    目次, 目次非表示, 目次強制, 節編集非表示, ギャラリー非表示, タイトル非変換, コンテンツ非変換, 隠しカテゴリ, 隠しカテゴリー, インデックス拒否,
    목차, 목차없음, 목차보이기, 문단편집없음, 부분편집숨기기, 숨은분류, 색인거부,
    inhaltsverzeichnis, kein_inhaltsverzeichnis, keininhaltsverzeichnis, inhaltsverzeichnis_erzwingen, abschnitte_nicht_bearbeiten,
    keine_galerie, versteckte_kategorie, nicht_indexieren, sommaire, tdm, aucunsommaire, aucunetdm, forcersommaire, forcertdm,
    sectionnoneditable, aucunegalerie, categoriecachee, aucunindex, tdc, notdc, sin_tdc, forzartdc, noeditarseccion, nogaleria,
    categoriaoculta, semtdc, forcartdc, semeditarsecao, indice, noindice, forzaindice, inhoud, geeninhoud, inhoud_dwingen,
    innehåll, ingeninnehållsförteckning, ingenredigerasektion, spis, bezspisu, zespisem, оглавление, оглав, без_оглавления,
    без_огл, обязательное_оглавление, обяз_огл, без_редактирования_раздела, без_галереи, скрытая_категория, без_индекса,
    съдържание, безсъдържание, зміст, без_змісту, mục_lục_luôn_hiện, không_mục_mục, không_mục_lục
""")
"""Behaviour switches, `__NOTOC__`, by the word between the underscores. Compared in lower case."""

CASED_SWITCHES = frozenset({"INDEX", "DISAMBIG", "START", "END"})
"""Switches in this case only: `__index__` is a name in Python."""

REDIRECTS = _names("""
    redirect, 重定向, 转向, 轉向, 転送, リダイレクト, 넘겨주기, перенаправление, перенапр, перенаправлення, пренасочване, виж,
    weiterleitung, redirection, redirección, redireccion, redirecionamento, redirecionar, rinvia, rinvio, doorverwijzing,
    omdirigering, omdiriger, patrz, przekieruj, tam, đổi, alih, yönlendirme, uudelleenohjaus, ohjaus, přesměruj, تحويل, הפניה
""")
"""Words after the `#` of a page that only points to another. Compared in lower case."""

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
    nowrap, nobr, nobreak, small, smaller, big, bigger, larger, large, em, strong, abbr, tooltip, ruby, ruby-ja,
    僻字, mono, var, mvar, math, bigmath, num, formatnum, nihongo, nihongo2, le, link-en, link-ja, link-de, link-fr, link-ru, ilh, ill,
    illm, 内链, interlanguage link, internal link helper, keypress, notatypo, not a typo, sic, center, resize, visible anchor,
    vanchor, linktext, wikt, sc, smallcaps, small caps, code, codett, kbd, samp, tt, key, key press, keypress
""")
"""{{nowrap|TEXT}}: the first argument is what a reader sees."""

QUOTES = frozenset(
    {
        "quote",
        "blockquote",
        "cquote",
        "quotation",
        "quote frame",
        "bquote",
        "引用",
        "quotation2",
        "諺",
    }
)
"""{{quote|TEXT|author}}: a paragraph of its own."""

LITERALS = {
    "ndash": " – ", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "spaced en dash": " – ", "–": " – ", "en dash": "–",
    "mdash": "—", "mdashb": "—", "em dash": "—", "—": "—", "spaced mdash": " — ", "nbsp": " ", "space": " ", "thinsp": " ", "nnbsp": " ",
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
    "to(-)": "–",
    "and(-)": " and ",
    "by(x)": " by ",
    "to about": "–",
    "±": " ± ",
    "×": " × ",
    "+/-": " ± ",
}
"""{{convert|5|to|10|km}}: words between two values."""
