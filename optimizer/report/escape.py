"""Names out of models as they may be shown: what could steer a terminal or break XML is spelled out."""

from __future__ import annotations

import html
import unicodedata


def printable(text: str) -> str:
    r"""`text` on one line, each control, format (bidirectional marks too), surrogate or unassigned character as `\x1b`."""
    return "".join(
        _spelled(character) if unicodedata.category(character)[0] == "C" or character in "\u2028\u2029" else character for character in text
    )


def markup(text: object) -> str:
    """`text` for HTML and XML, in content and in quoted attributes."""
    return html.escape(printable(str(text)), quote=True)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
