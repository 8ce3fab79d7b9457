"""Plain text, Markdown and reStructuredText: one document per file."""

import re
from collections.abc import Iterator

from lm_retrieval.corpus.files import read_text, suffix_of
from lm_retrieval.records import Document
from lm_retrieval.storage import Location

SUFFIXES = frozenset((".txt", ".md", ".rst"))

_MARKDOWN_TITLE = re.compile(r"\A\s*#[ \t]+(?P<title>\S[^\n]*)(?:\n|\Z)")
_RST_TITLE = re.compile(r"\A\s*(?:([=\-~^\"'#*+])\1{2,}\n)?(?P<title>[^\n]+)\n([=\-~^\"'#*+])\3{2,}\s*(?:\n|\Z)")


def read(path: Location, *, name: str, encoding: str) -> Iterator[tuple[Document, str]]:
    """Yields the file's one document and its place. A leading heading becomes the title."""
    text = read_text(path, encoding=encoding)
    heading = {".md": _MARKDOWN_TITLE, ".rst": _RST_TITLE}.get(suffix_of(path))
    match = heading.match(text) if heading else None
    if match:
        yield Document(name, _title(match["title"]), text[match.end() :].strip("\n")), name
    else:
        yield Document(name, "", text), name


def _title(heading: str) -> str:
    """A heading without the marks that may close it: `Title ##`, but not `C#`."""
    title = heading.strip()
    bare = title.rstrip("#")
    return bare.rstrip() if bare[-1:].isspace() else title
