"""Names of disorders -> rows and codes."""

import pytest

from radfm import RadFMConfig
from radfm.configuration_radfm import VocabularyIndex

INDEX = VocabularyIndex(["Pneumothorax", "Gout", "gout"], [["J93.9"], ["M10.9"], []])


def test_case_and_spaces_do_not_matter_and_the_same_spelling_takes_precedence():
    assert INDEX.rows(["pneumothorax", " GOUT ", "gout"]) == [0, 1, 2]
    assert "PNEUMOTHORAX" in INDEX
    assert "Rickets" not in INDEX
    assert INDEX.get("Rickets") is None


def test_codes_are_those_of_the_row():
    assert INDEX.codes("pneumothorax") == ["J93.9"]
    assert INDEX.codes("Rickets") == []
    assert VocabularyIndex(["Gout"]).codes("Gout") == []


def test_an_unknown_name_is_refused_with_similar_ones():
    with pytest.raises(ValueError, match="'Pneumotorax' is not in the vocabulary: did you mean Pneumothorax"):
        INDEX.row("Pneumotorax")


def test_the_index_of_a_configuration_follows_its_disorders_and_is_not_saved():
    config = RadFMConfig(disorders=["Gout"])
    assert config.vocabulary.row("gout") == 0
    config.disorders = ["Rickets", "Gout"]
    assert config.vocabulary.row("gout") == 1
    assert "vocabulary" not in config.to_dict()
