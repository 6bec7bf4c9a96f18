"""Classes in words, for networks that read text: synonyms, template, number of draws.

Source: Li et al. (2024), "DiffuPrompter", sections 2.2.1 and 2.2.2. What the paper leaves open is decided as follows.

* A class may have synonyms, whose maps are averaged: "landslide" is a rare word in what such networks learned from.
* The time step is an absolute one of the network's own noise schedule, 40 of 1000. The noise is then a fifth of the
  signal's size, which is what the source of the averaging (SmoothGrad) advises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from geolabel.errors import OptionError

TEMPLATE = "Photo of a {}"
"""The paper's; its article becomes "an" before a vowel, as in the paper's figures."""

RESERVED = ("background",)
"""Names that no class can have."""


@dataclass(frozen=True)
class Concept:
    """A class, and the words that mean it."""

    name: str
    words: tuple[str, ...]
    """The name itself and its synonyms."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME``, or ``NAME/SYNONYM/...``; each may be of several words.

        Raises
        ------
        OptionError
            If a name is empty, reserved or given twice.
        """
        words = tuple(" ".join(word.split()).lower() for word in text.split("/"))
        if not all(words):
            raise OptionError(f"class {text!r} has an empty name: give NAME or NAME/SYNONYM")
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise OptionError(f"class {text!r} names {', '.join(twice)} twice: give every word once")
        if words[0] in RESERVED:
            raise OptionError(f"a class cannot be called {words[0]}: that is what no class covers")
        return cls(words[0], words)


def parse_concepts(text: str) -> tuple[Concept, ...]:
    """Read classes that commas part, such as ``landslide/mudslide,airplane``.

    Raises
    ------
    OptionError
        If there is none, one has an empty name, or two share a word.
    """
    concepts = tuple(Concept.parse(part) for part in text.split(","))
    words = [word for concept in concepts for word in concept.words]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise OptionError(f"{', '.join(twice)} is given for two classes: every class needs words of its own")
    return concepts


@dataclass(frozen=True)
class Asked:
    """Classes that a network is asked for in words."""

    concepts: tuple[Concept, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(concept.name for concept in self.concepts)


@dataclass(frozen=True)
class Grounding(Asked):
    """How classes are looked for by a text-to-image network. The defaults are the paper's.

    Raises
    ------
    OptionError
        If a number cannot be, or the template has no place for the class or several.
    """

    template: str = TEMPLATE
    timestep: int = 40
    """Absolute, of the noise schedule; what the noise is at."""
    draws: int = 50
    """L of eq. 6 to 9: how many maps of independent noise are averaged."""
    seed: int = 0
    """Of the noise, which is the same for every image."""
    crf: float | None = None
    """The threshold gamma at which a dense CRF refines the maps (eq. 10); None for maps as they are."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise OptionError(f"draws {self.draws}: at least one is needed")
        if self.timestep < 0:
            raise OptionError(f"time step {self.timestep}: 0 is no noise, and less cannot be")
        before, *after = self.template.split("{}")
        if len(after) != 1 or before[-1:].isalnum() or after[0][:1].isalnum():
            raise OptionError(f"template {self.template!r}: it needs one {{}} where the class goes, a word of its own")
        if self.crf is not None and not 0 < self.crf < 1:
            raise OptionError(f"threshold {self.crf}: it has to be between 0 and 1")

    def prompt(self, word: str) -> str:
        """The prompt for a word."""
        before, after = self.template.split("{}")
        if word[0] in "aeiou" and (before == "a " or before.endswith(" a ")):
            before = f"{before[:-1]}n "
        return f"{before}{word}{after}"


def word_pieces(tokenizer: Any, word: str) -> list[int]:
    """The tokens of a word, as a tokenizer of transformers has them.

    Raises
    ------
    OptionError
        If the tokenizer does not know the word, or spells it letter by letter.
    """
    pieces = list(tokenizer(word, add_special_tokens=False).input_ids)
    way_out = "give another word for it, as NAME/SYNONYM"
    if not pieces or tokenizer.unk_token_id in pieces:
        raise OptionError(f"the network's tokenizer does not know {word!r}: {way_out}")
    if len(pieces) > 1 and len(pieces) >= len(word.replace(" ", "")):
        raise OptionError(
            f"the network's tokenizer knows no part of {word!r} and spells it in {len(pieces)}: {way_out}"
        )
    return pieces
