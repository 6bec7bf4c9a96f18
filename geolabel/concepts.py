"""Classes in words, for networks that read text: synonyms, template, number of samples.

Source: Li et al. (2024), "DiffuPrompter", sections 2.2.1 and 2.2.2. What the paper leaves open is decided as follows:

* A class may have synonyms, whose maps are averaged: "landslide" is rare in the training texts of such networks.
* The time step is an absolute one of the network's noise schedule, 40 of 1000. The noise is then a fifth of the size
  of the signal, as advised by the source of the averaging (SmoothGrad).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from geolabel.errors import OptionError

TEMPLATE = "Photo of a {}"
"""The paper's template; its article becomes "an" before a vowel, as in the paper's figures."""

RESERVED = ("background",)
"""Names that a class cannot have."""


@dataclass(frozen=True)
class Concept:
    """A class and the words for it."""

    name: str
    words: tuple[str, ...]
    """The name itself and its synonyms."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``NAME``, or ``NAME/SYNONYM/...``; each may consist of several words.

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
            raise OptionError(f"a class cannot be called {words[0]}: that name is used for pixels without a class")
        return cls(words[0], words)


def parse_concepts(text: str) -> tuple[Concept, ...]:
    """Parse comma-separated classes, such as ``landslide/mudslide,airplane``.

    Raises
    ------
    OptionError
        If there is none, a name is empty, or two classes share a word.
    """
    concepts = tuple(Concept.parse(part) for part in text.split(","))
    words = [word for concept in concepts for word in concept.words]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise OptionError(f"{', '.join(twice)} is given for two classes: use different words for each class")
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
    """How a text-to-image network is asked for classes. The defaults are the paper's.

    Raises
    ------
    OptionError
        If a number is out of range, or the template does not have exactly one placeholder.
    """

    template: str = TEMPLATE
    timestep: int = 40
    """Absolute time step of the noise schedule, which sets the noise level."""
    draws: int = 50
    """L of eq. 6 to 9: number of maps with independent noise that are averaged."""
    seed: int = 0
    """Random seed of the noise, which is the same for every image."""
    crf: float | None = None
    """The threshold gamma of the dense CRF that refines the maps (eq. 10); None for unrefined maps."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise OptionError(f"draws {self.draws}: at least one is needed")
        if self.timestep < 0:
            raise OptionError(f"time step {self.timestep}: give at least 0 (no noise)")
        before, *after = self.template.split("{}")
        if len(after) != 1 or before[-1:].isalnum() or after[0][:1].isalnum():
            raise OptionError(
                f"template {self.template!r}: it needs one {{}} where the class is to stand, as a whole word"
            )
        if self.crf is not None and not 0 < self.crf < 1:
            raise OptionError(f"threshold {self.crf}: it must be between 0 and 1")

    def prompt(self, word: str) -> str:
        """The prompt for a word."""
        before, after = self.template.split("{}")
        if word[0] in "aeiou" and (before == "a " or before.endswith(" a ")):
            before = f"{before[:-1]}n "
        return f"{before}{word}{after}"


def word_pieces(tokenizer: Any, word: str) -> list[int]:
    """The tokens of a word, from a tokenizer of transformers.

    Raises
    ------
    OptionError
        If the tokenizer does not know the word, or splits it into single letters.
    """
    pieces = list(tokenizer(word, add_special_tokens=False).input_ids)
    way_out = "give another word for it, as NAME/SYNONYM"
    if not pieces or tokenizer.unk_token_id in pieces:
        raise OptionError(f"the network's tokenizer does not know {word!r}: {way_out}")
    if len(pieces) > 1 and len(pieces) >= len(word.replace(" ", "")):
        raise OptionError(
            f"the network's tokenizer knows no part of {word!r} and splits it into {len(pieces)}: {way_out}"
        )
    return pieces
