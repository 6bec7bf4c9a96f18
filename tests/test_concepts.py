"""Classes in words: synonyms, articles, and what cannot be asked."""

from __future__ import annotations

import pytest

from geolabel.concepts import Concept, Grounding, parse_concepts
from geolabel.errors import OptionError


def test_commas_part_classes_and_slashes_synonyms() -> None:
    assert parse_concepts("Landslide / mudslide,storage  tank") == (
        Concept("landslide", ("landslide", "mudslide")),
        Concept("storage tank", ("storage tank",)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty name"),
        ("landslide,,airplane", "empty name"),
        ("landslide,airplane,Landslide", "landslide is given for two classes"),
        ("landslide/mudslide,slump/mudslide", "mudslide is given for two classes"),
        ("landslide/landslide", "names landslide twice"),
        ("background", "cannot be called background"),
    ],
)
def test_what_cannot_be_a_class(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_concepts(text)


@pytest.mark.parametrize(
    ("template", "word", "prompt"),
    [
        ("Photo of a {}", "landslide", "Photo of a landslide"),
        ("Photo of a {}", "airplane", "Photo of an airplane"),
        ("a {} from above", "island", "an island from above"),
        ("Papua {}", "ash", "Papua ash"),
    ],
)
def test_the_article_fits_the_word(template: str, word: str, prompt: str) -> None:
    assert Grounding(parse_concepts(word), template=template).prompt(word) == prompt


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draws": 0}, "draws 0"),
        ({"timestep": -1}, "time step -1"),
        ({"template": "Photo"}, "one {}"),
        ({"template": "{} {}"}, "one {}"),
        ({"template": "a{}"}, "a whole word"),
        ({"template": "a {}s"}, "a whole word"),
        ({"crf": 1.0}, "threshold 1"),
    ],
)
def test_numbers_that_cannot_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Grounding(parse_concepts("landslide"), **given)  # type: ignore[arg-type]
