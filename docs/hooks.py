"""What mkdocs calls: files of the project's root become pages."""

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts a file of the root in the place of a line `--8<-- "FILE"`."""

    # From the root a page is docs/PAGE.md, from another page PAGE.md. mkdocs resolves links after
    # its own snippets are in, so that theirs could not be changed.
    def include(found: re.Match[str]) -> str:
        return (ROOT / found.group(1)).read_text().replace("](docs/", "](")

    return re.sub(r'^--8<-- "(.+)"$', include, markdown, flags=re.MULTILINE)
