"""What an encoder is accepted on: short texts and a long one, of several languages, with and without words it knows."""

from __future__ import annotations

TEXTS = (
    "Hello.",
    "The cat sat on the mat and looked out of the window.",
    "How do I reset the password of my router?",
    "Quarterly revenue rose by 12.4 % to 3,905 million euros.",
    "I have waited three weeks for this parcel and nobody answers the phone!",
    "What a wonderful evening, thank you all for coming.",
    "Ada Lovelace met Charles Babbage in London in June 1833.",
    "def mean(values):\n    return sum(values) / len(values)",
    "Der Zug nach München fährt heute von Gleis 7 ab.",
    "¿Dónde está la biblioteca más cercana?",
    "東京は日本の首都です。",
    "Погода сегодня хорошая.",
    "A",
    "https://example.org/a/b?c=1&d=2#e",
    "zxqv 00:17 ### ... ---",
    "A board with two gigabytes of memory has to share them with the system, the network and whatever else runs there. "
    "So what is sent to it is made small first, and what it answers is compared with what the large model answered, "
    "sentence by sentence, before anybody relies on it.",
)
