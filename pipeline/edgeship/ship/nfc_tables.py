"""Unicode's tables of canonical composition as C++ arrays, from Python's own `unicodedata`."""

from __future__ import annotations

import sys
import unicodedata


def nfc_tables() -> str:
    """A header with combining classes, canonical decompositions and the pairs that compose, each sorted."""
    classes, parts, pairs = [], [], []
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if value := unicodedata.combining(letter):
            classes.append((code, value))
        told = unicodedata.decomposition(letter)
        if not told or told.startswith("<"):
            continue
        first, second = [*(int(word, 16) for word in told.split()), 0][:2]
        parts.append((code, first, second))
        # Some pairs do not compose: Unicode's composition exclusions, which the normal form knows.
        if second and unicodedata.normalize("NFC", chr(first) + chr(second)) == letter:
            pairs.append((first, second, code))
    return "\n".join(
        [
            f"// Unicode {unicodedata.unidata_version}; generated.",
            "#include <cstdint>",
            "struct Class { uint32_t code; uint8_t value; };",
            "struct Parts { uint32_t code, first, second; };",
            "struct Pair { uint32_t first, second, code; };",
            _array("Class CLASSES", classes),
            _array("Parts PARTS", parts),
            _array("Pair PAIRS", sorted(pairs)),
            "",
        ]
    )


def _array(name: str, rows: list[tuple[int, int]] | list[tuple[int, int, int]]) -> str:
    lines = [f"    {{{', '.join(map(str, row))}}}," for row in rows]
    return "\n".join([f"static const {name}[] = {{", *lines, "};"])
