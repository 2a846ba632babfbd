"""Files of the checkout."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def code_block(page):
    """Returns the one block of Python of a page, given by its path in the checkout."""
    text = (ROOT / page).read_text()
    (code,) = re.findall(r"^```\{?\.?python.*\n((?s:.*?))^```", text, flags=re.MULTILINE)
    return code
