#!/usr/bin/env python3
"""pages.py SOURCE HTML : what Doxygen wrote to HTML, held against SOURCE's Markdown.

Every page written in Markdown must have arrived with its headings, tables (each cell) and
blocks of code; no page may show raw Markdown; every link to a file beside it must lead to
one, and to a place in it that exists. One line per fault, and exit code 1.
"""

import collections
import html.parser
import os
import pathlib
import re
import sys
import urllib.parse

RAW = re.compile(r"\]\(|\|\s*:?-{3,}|```|^#{1,6} |\*\*|[\\@](?:ref|section|code)\b", re.M)
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


def squeezed(text):
    """Without white space, which a browser, too, may put anywhere."""
    return re.sub(r"\s+", "", text)


class Page(html.parser.HTMLParser):
    """What a reader finds on a built page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.title = path, ""
        self.headings, self.tables, self.blocks = [], [], []
        self.prose, self.links, self.places = "", [], set()
        self.open = []  # a tag and its classes, from the outermost to here
        self.around = collections.Counter()  # how many of each name are open
        text = path.read_text(encoding="utf-8")
        if path.name.endswith("_source.html"):  # half of all that is written; only links
            self.links = re.findall(r' (?:href|src)="([^"]+)"', text)
            self.places = set(re.findall(r' (?:id|name)="([^"]+)"', text))
            self.feed(text[:text.find('class="contents"')])
        else:
            self.feed(text)

    def inside(self, *names):
        return any(self.around[name] for name in names)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.places.update(values[k] for k in ("id", "name") if k in values)
        if not self.inside("summary"):  # Doxygen's list of a page's parts names empty ones
            self.links += [values[k] for k in ("href", "src") if k in values]
        classes = values.get("class", "").split()
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append("")
        elif tag == "table" and "markdownTable" in classes:
            self.tables.append([])
        elif tag == "tr" and self.inside("markdownTable"):
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.inside("markdownTable"):
            self.tables[-1][-1].append("")
        elif "fragment" in classes:
            self.blocks.append("")
        if tag in ("p", "div", "li", "tr") and not self.inside("fragment"):
            self.prose += "\n"
        if tag not in VOID:
            self.open.append([tag, *classes])
            self.around.update(self.open[-1])

    def handle_endtag(self, tag):
        while self.around[tag] and self.open:
            names = self.open.pop()
            self.around.subtract(names)
            if names[0] == tag:
                break

    def handle_data(self, text):
        if self.inside("title") and not self.inside("head"):
            self.title += text
        if not self.inside("contents") or self.inside("script", "style", "ttc"):
            return  # "ttc": what a mouse over a name would be told
        if self.inside("fragment"):
            self.blocks[-1] += text
            return
        if self.inside("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings[-1] += text
        if self.inside("markdownTable") and self.inside("td", "th"):
            self.tables[-1][-1][-1] += text
        if self.inside("textblock", "memdoc") and not self.inside("code", "pre", "tt"):
            self.prose += text


class Markdown:
    """The same of a Markdown file, as its author meant it."""

    def __init__(self, path):
        self.title = ""
        self.headings, self.tables, self.blocks = [], [], []
        fenced = in_table = False
        before = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("    ") and not fenced:
                if not before.strip():
                    self.blocks.append("")
                self.blocks[-1] += line
            elif line.startswith("```"):
                fenced = not fenced
                if fenced:
                    self.blocks.append("")
            elif fenced:
                self.blocks[-1] += line
            elif heading := re.match(r"#+ (.*)", line):
                if self.title:
                    self.headings.append(self.shown(heading[1]))
                else:
                    self.title = self.shown(heading[1])
            elif line.startswith("|"):
                if not in_table:
                    self.tables.append([])
                if not re.fullmatch(r"[|\s:-]+", line):
                    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
                    self.tables[-1].append([self.shown(cell) for cell in cells])
            elif line.startswith(("@include", "@snippet")):
                self.blocks.append(None)  # a file's
            in_table = not fenced and line.startswith("|")
            before = line

    @staticmethod
    def shown(text):
        """Of one line, what is left without the marks."""
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        spans = text.split("`")  # every other one is code, and stays as it is
        spans[::2] = [re.sub(r"\*+(\S[^*]*)\*+", r"\1", span) for span in spans[::2]]
        return squeezed("".join(spans).replace("\\|", "|"))


def faults_of_text(page, source):
    """What of a Markdown file its page lacks or shows otherwise."""
    kinds = [("headings", [squeezed(h) for h in page.headings], source.headings),
             ("blocks of code", [squeezed(b) for b in page.blocks],
              [b and squeezed(b) for b in source.blocks]),
             ("tables", page.tables, source.tables)]
    for kind, found, wanted in kinds:
        if len(found) != len(wanted):
            yield f"{len(found)} {kind} of {len(wanted)}"
            continue
        for number, (got, want) in enumerate(zip(found, wanted), 1):
            if kind == "tables":
                got = [[squeezed(cell) for cell in row] for row in got]
            if want is not None and got != want:
                yield f"{kind}, number {number}: {got} is not {want}"


def faults_of_links(page, pages):
    for link in dict.fromkeys(page.links):
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = page.path
        if parts.path:
            beside = page.path.parent / urllib.parse.unquote(parts.path)
            target = pathlib.Path(os.path.normpath(beside))
        place = urllib.parse.unquote(parts.fragment)
        if not target.exists():
            yield f"{link} leads to no file"
        elif place and target in pages and place not in pages[target].places:
            yield f"{link} leads to a file that has no such place"


def faults_of(source_root, html_root):
    """Of all pages, as lines."""
    pages = {path: Page(path) for path in sorted(html_root.resolve().glob("**/*.html"))}
    by_title = {squeezed(page.title): page for page in pages.values()}
    sources = [source_root / "README.md", *sorted(source_root.glob("docs/**/*.md"))]
    for path in sources:
        source = Markdown(path)
        page = by_title.get(source.title)
        if page is None:
            yield f"{path.relative_to(source_root)}: has no page"
            continue
        for fault in faults_of_text(page, source):
            yield f"{page.path.name} ({path.relative_to(source_root)}): {fault}"
    if squeezed(pages[html_root.resolve() / "index.html"].title) != Markdown(sources[0]).title:
        yield "index.html: is not README.md"
    for page in pages.values():
        for raw in RAW.finditer(page.prose):
            around = page.prose[max(0, raw.start() - 30):raw.end() + 30].replace("\n", " ")
            yield f"{page.path.name}: shows raw Markdown: {around}"
        for fault in faults_of_links(page, pages):
            yield f"{page.path.name}: {fault}"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = list(faults_of(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))
    print(*found, sep="\n" if found else "", end="\n" if found else "", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
