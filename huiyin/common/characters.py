"""Characters that nobody sees: white space, and what Unicode calls format, control or ignorable."""

import unicodedata
from typing import BinaryIO

BOM = "\ufeff"
# Python and Polars disagree about U+001C to U+001F; this one list decides.
WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())

# Classes for Polars' regular expressions. `ignorable` holds joiners, marks of direction, variation selectors, the
# fillers of Hangul and more; U+2800 is a braille pattern without dots, U+FFFC stands where an object was.
INVISIBLE = r"[\p{Default_Ignorable_Code_Point}\p{Cf}\x{2800}\x{FFFC}[\p{Cc}--\s]]"
VISIBLE = r"[^\p{Default_Ignorable_Code_Point}\p{Cf}\x{2800}\x{FFFC}\p{Cc}\p{Z}\p{Mn}]"  # a mark alone shows nothing
# the same for Python, whose `re` has no properties: categories, and four letters that fill a place in Hangul
UNSEEN, FILLERS = ("Cf", "Cc", "Mn", "Cn", "Co", "Cs"), "\u115f\u1160\u3164\uffa0"


def is_seen(character: str) -> bool:
    """Is `character` drawn, or white space? Joiners, marks of direction and variation, NUL and the like are neither."""
    return character.isspace() or (unicodedata.category(character) not in UNSEEN and character not in FILLERS)


def skip_bom(file: BinaryIO) -> bytes:
    """Read past a byte order mark at the start of `file`; return what was read: the mark or nothing."""
    if (start := file.read(3)) == BOM.encode():
        return start
    file.seek(0)
    return b""
