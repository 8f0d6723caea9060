"""Which language a line is heard to be in."""

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_engine.lyrics import Language
from acestep_engine.lyrics.detect import LanguageDetector

GOLDEN = Path(__file__).parents[1] / "golden" / "cases" / "lyric_tokens.json"
LINES: list[dict[str, Any]] = [
    case for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["lines"] if not case["line"].startswith("[")
]


@pytest.fixture(scope="module")
def detector() -> LanguageDetector:
    return LanguageDetector()


@pytest.mark.parametrize("case", LINES, ids=lambda case: case["line"])
def test_a_line_on_its_own_is_recognised(detector: LanguageDetector, case: dict[str, Any]) -> None:
    assert detector.detect([case["line"]]) == [case["language"]]


def test_more_lines_are_recognised_than_by_the_published_detector(detector: LanguageDetector) -> None:
    published = sum(case["reference_detects"] == case["language"] for case in LINES)
    ours = detector.detect([case["line"] for case in LINES])
    assert sum(language == case["language"] for language, case in zip(ours, LINES, strict=True)) > published


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("en", "Take me home, country roads"), ("de", "Halt mich fest und lass mich niemals gehen"),
        ("fr", "Où es-tu maintenant, mon amour"), ("es", "Quiero vivir contigo para siempre"),
        ("it", "Voglio vivere così, col sole in fronte"), ("pt", "Eu te amo mais que tudo"),
        ("pl", "Gdzie jesteś teraz, moja miła"), ("tr", "Gökyüzünde yıldızlar"), ("cs", "Všechno bude dobré"),
        ("nl", "Waar ben je nu, mijn lief"), ("hu", "Hol vagy most, kedvesem"), ("ru", "Ты свет моей жизни"),
        ("ar", "أنت نور حياتي"), ("zh", "月亮代表我的心"), ("ja", "どうか行かないで"), ("ja", "カラオケ"),
        ("ko", "안녕 내 사랑"),
        ("hi", "तुम अब कहाँ हो"), ("de", "ICH LAUFE DURCH DIE LEEREN STRASSEN"),
    ],
)  # fmt: skip
def test_an_ordinary_line_is_recognised(detector: LanguageDetector, language: Language, line: str) -> None:
    assert detector.detect([line]) == [language]


@pytest.mark.parametrize(
    ("line", "language"), [("Baby 사랑해 forever", "ko"), ("I love カラオケ", "ja"), ("My 心 is yours", "zh")]
)
def test_letters_that_only_one_language_has_decide(detector: LanguageDetector, line: str, language: Language) -> None:
    assert detector.detect([line]) == [language]


def test_an_unclear_line_is_in_a_language_of_the_song(detector: LanguageDetector) -> None:
    assert detector.detect(["Caminho sozinho pelas ruas da cidade", "Sem medo"]) == ["pt", "pt"]
    assert detector.detect(["Camino solo por las calles de la ciudad", "Mi amor"]) == ["es", "es"]


@pytest.mark.parametrize("line", ["1, 2, 3!", "la la la", "Oh, yeah", "...", "x2", "😀", ""])
def test_a_line_that_says_nothing_is_as_the_nearest_that_does(detector: LanguageDetector, line: str) -> None:
    song = ["Ich will zurück nach Hause", line, "", "Je t'aime mon amour, c'est la vie"]
    assert detector.detect(song) == ["de", "de", "fr", "fr"]
    assert detector.detect([line, "너를 사랑해"]) == ["ko", "ko"]
    assert detector.detect([line]) == ["en"]


@pytest.mark.parametrize("line", ["La la la", "1999", "Hey, hey"])
def test_a_line_that_says_nothing_is_in_the_language_of_most_lines(detector: LanguageDetector, line: str) -> None:
    english, hindi = "Neon lights they flicker bright", "तुम ही हो मेरी जिंदगी"
    assert detector.detect([english, english, hindi, line, hindi, english]) == ["en", "en", "hi", "en", "hi", "en"]
    assert detector.detect([english, hindi, line, hindi]) == ["en", "hi", "hi", "hi"]


def test_languages_that_are_known_stay_and_count(detector: LanguageDetector) -> None:
    lines = ["hamkke", "hamkke", "Neon lights they flicker bright", "la la"]
    assert detector.detect(lines, ["ko", "ko", None, None]) == ["ko", "ko", "en", "ko"]
    assert detector.detect(["東京", "夜に駆けていく"], ["zh", None]) == ["zh", "ja"]


def test_a_script_that_the_vocabulary_lacks_is_english(detector: LanguageDetector) -> None:
    assert detector.detect(["Γειά σου", "สวัสดี"]) == ["en", "en"]


@pytest.mark.parametrize("line", ["東京", "東京大学附属病院", "一 二 三 四 五", "髙橋剝頰", "満月々夜"])
def test_kanji_without_kana_are_japanese_in_a_japanese_song_only(detector: LanguageDetector, line: str) -> None:
    assert detector.detect([line, "夢のあと"]) == ["ja", "ja"]
    assert detector.detect(["夢のあと", "", "la la", line]) == ["ja"] * 4
    assert detector.detect([line, "Nachts in der Stadt"]) == ["zh", "de"]
    assert detector.detect([line, "我爱你"]) == ["zh", "zh"]


@pytest.mark.parametrize("line", ["我爱你", "爱", "风花雪月的故事", "你是我的月光", "說謊"])
def test_characters_that_japanese_lacks_are_chinese_beside_kana(detector: LanguageDetector, line: str) -> None:
    assert detector.detect([line, "夜に駆けていく"]) == ["zh", "ja"]


def test_a_line_in_characters_of_both_is_as_the_nearest_certain_line(detector: LanguageDetector) -> None:
    song = ["我爱你", "月亮代表我的心", "東京", "夢のあと", "東京大学附属病院"]
    assert detector.detect(song) == ["zh", "zh", "ja", "ja", "ja"]


def test_the_same_song_is_detected_the_same_twice(detector: LanguageDetector) -> None:
    lines = [case["line"] for case in LINES]
    assert detector.detect(lines) == LanguageDetector().detect(lines)
