from __future__ import annotations

import pytest

from segtune.labels.markdown import escape_markdown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("road_marking (left)", "road_marking (left)"),
        (" a|b\n c ", "a&#124;b c"),
        ("<b> & `code` *loud*", "&lt;b> &amp; &#96;code&#96; &#42;loud&#42;"),
        ("[a](https://b)", "[a](https://b)"),
        (7, "7"),
    ],
)
def test_what_markdown_would_read_otherwise_becomes_an_entity(text: object, escaped: str) -> None:
    assert escape_markdown(text) == escaped
