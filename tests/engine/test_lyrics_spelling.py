"""Each line is spelled as the published tokenizer spells it; the right-hand sides are its answers."""

import pytest

from acestep_engine.lyrics import LANGUAGES, Language
from acestep_engine.lyrics.chinese_numbers import normalize, read, spell
from acestep_engine.lyrics.clean import Cleaner

PUBLISHED: list[tuple[Language, str, str]] = [
    ("en", '"Hello" Mr. Smith & Mrs. Jones', "hello mister smith and misess jones"),
    (
        "en",
        "In 12.5 seconds, 1,234,007 stars",
        "in twelve point five seconds, one million, two hundred and thirty-four thousand and seven stars",
    ),
    (
        "en",
        "$20, 20.15€ and £1.50 on the 3rd",
        "twenty dollars, twenty euro, fifteen cents and one pound sterling, fifty pence on the third",
    ),
    ("en", "50% @ home #1, 36.6°", "fifty percent at home hash one, thirty-six point six degree"),
    ("en", "Call 555-0199 at 10:30", "call five hundred and fifty-five-one hundred and ninety-nine at ten:thirty"),
    ("en", "1,234.50$", "one thousand, two hundred and thirty-four dollars, fifty cents"),
    ("de", "Dr. Müller zahlt 20,15€ am 1. Mai", "doktor müller zahlt zwanzig Euro und fünfzehn Cent am erste mai"),
    ("de", "100.000,5 Sterne & 50%", "einhunderttausend Komma fünf sterne und fünfzig prozent"),
    ("fr", "Le 1er jour, 12,5 km, 100.000 fois", "le premier jour, douze virgule cinq km, cent mille fois"),
    ("fr", "Mme. Moreau à 30° pour 5€", "madame moreau à trente degrés pour cinq euros"),
    ("es", "El Sr. García pagó $20 el 3º día", "el señor garcía pagó veinte dólares el tercero día"),
    ("es", "Uno de 1.500 & 100%", "uno de mil quinientos y cien por ciento"),
    ("it", "La 1a volta, 12,5 secondi, 20€", "la primo volta, dodici virgola cinque secondi, venti euro"),
    ("it", "Sig. Rossi @ casa", "signore rossi chiocciola casa"),
    ("pt", "O 1º dia, 2.000 anos, R$ 50", "o primeiro dia, dois mil anos, r dólar cinquenta"),
    ("pt", "Dra. Costa & 15%", "doutora costa e quinze por cento"),
    ("pl", "P. Kowalski ma 50 lat, 12,5%", "pani kowalski ma pięćdziesiąt lat, dwanaście przecinek pięć procent"),
    ("pl", "20.15€ na 3º", "dwadzieścia euro, piętnaście centów na trzeci"),
    ("tr", "İstanbul ÖYLE Ü 1. gün 12,5", "istanbul öyle ü birinci gün oniki,beş"),
    ("tr", "50 yıl, 3üncü, 20$", "elli yıl, üçüncü, yirmi dolar"),
    ("ru", "Г-н Иванов, 1,5 часа, 3-й день", "господин иванов, одна целая пять десятых часа, третий день"),
    ("ru", "100,000 рублей и 20€", "сто тысяч рублей и двадцать евро"),
    ("cs", "Dr. Novák má 50 Kč & 3. den", "doktor novák má 50 kč a 3. den"),
    ("nl", "Dhr. de Vries, de 1ste dag, 20€", "de heer de vries, de eerste dag, twintig euro"),
    ("nl", "12,5 graden & 100.000", "twaalf komma vijf graden en honderdduizend"),
    ("hu", "Az 1. nap 12,5 fok", "az első nap tizenkettő egész öt tized fok"),
    ("hu", "Dr. Kiss 20€ és 100%", "doktor kiss húsz euro és száz százalék"),
    ("ar", "كان هناك 50 يوم و 12,5%", "كان هناك خمسون يوم و اثنا عشر , خمسون في المئة"),
    ("ar", "3ر و 20$", "ثالث و عشرون ريالاً"),
    ("ko", "3번째 사랑 12.5%", "se beon-jjae salang sib-i jeom o peosenteu"),
    ("ko", "나는 $20를 100,000번", "naneun isibdalleo yeongsenteuleul baegbeon"),
    ("hi", 'मैं 3 बार  कहता "हूँ" OK', 'मैं 3 बार कहता "हूँ" ok'),
    ("ja", "3回目のキス、1,000年", "3 kaime no kiss, 1,000 nen"),
    ("ja", "Tokyoで会おう！", "tokyo de aou!"),
    ("zh", "2024年5月20日下午3点", "er4ling2er4si4nian2wu3yue4er4shi2ri4xia4wu3san1dian3"),
    ("zh", "我有12.5元，打八折，100%", "wo3you3shi2er4dian3wu3yuan2,da3ba1zhe2,bai3fen1zhi1yi4bai3"),
    (
        "zh",
        "电话13812345678或010-12345678",
        "dian4hua4yi1san1ba1yi1er4san1si4wu3liu4qi1ba1huo4ling2yi1ling2yi1er4san1si4wu3liu4qi1ba1",
    ),
    ("zh", "三分之一是1/3，2个人，200年", "san1fen1zhi1yi1shi4san1fen1zhi1yi1,er4ge4ren2,liang3bai3nian2"),
    ("zh", 'P2P & 10号 "你好" 20°', "p2p , shi2hao4 ni3hao3 er4shi2 du4"),
    ("zh", "10点10分，102000人，0.5", "shi2dian3shi2fen1,yi1ling2er4ling2ling2ling2ren2,ling2dian3wu3"),
]


@pytest.fixture(scope="module")
def cleaner() -> Cleaner:
    return Cleaner()


@pytest.mark.parametrize(("language", "line", "spelled"), PUBLISHED)
def test_a_line_is_spelled_as_published(cleaner: Cleaner, language: Language, line: str, spelled: str) -> None:
    assert cleaner.clean(line, language) == spelled


def test_every_language_has_a_published_line() -> None:
    assert {language for language, _, _ in PUBLISHED} == set(LANGUAGES)


def test_a_number_too_long_to_read_leaves_all_numbers_of_the_line(cleaner: Cleaner) -> None:
    assert cleaner.clean("3 days and " + "9" * 400 + " nights", "en") == "3 days and " + "9" * 400 + " nights"
    assert cleaner.clean("3 days and " + "9" * 5000 + " nights", "en").startswith("3 days")


def test_a_currency_that_a_language_lacks_is_read_as_symbol_and_number(cleaner: Cleaner) -> None:
    assert cleaner.clean("$20", "tr") == "dolar yirmi"


def test_a_long_arabic_ordinal_does_not_change_how_later_numbers_are_read(cleaner: Cleaner) -> None:
    amount = "$61517063504742300895111859088"
    before = cleaner.clean(amount, "ko")
    cleaner.clean("9" * 300 + "ر", "ar")
    assert cleaner.clean(amount, "ko") == before


@pytest.mark.parametrize("unreadable", ["\u3097", "ッヽ"])
def test_a_japanese_line_with_kana_that_have_no_reading_keeps_the_rest(cleaner: Cleaner, unreadable: str) -> None:
    assert cleaner.clean(f"夜に駆ける {unreadable} 君の名は", "ja").split()[0] == "yoru"
    assert cleaner.clean(unreadable[0], "ja") == ""


def test_a_lone_surrogate_is_a_replacement_character(cleaner: Cleaner) -> None:
    assert cleaner.clean("a\ud800b", "en") == "a\ufffdb"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "零"), ("10", "十"), ("12", "十二"), ("20", "二十"), ("22", "二十二"), ("100", "一百"),
        ("102", "一百零二"),
        ("110", "一百一十"), ("200", "两百"), ("222", "两百二十二"), ("2000", "两千"), ("2002", "两千零二"),
        ("10050", "一万零五十"),
        ("20000", "两万"), ("120000", "十二万"), ("100000000", "一亿"), ("2.25", "二点二五"), ("00.5", "零点五"),
        ("05", "零五"),
        ("5" + "0" * 44, "五载"), ("1" + "0" * 48, "一万载"),
    ],
)  # fmt: skip
def test_a_number_is_read_in_chinese(number: str, words: str) -> None:
    assert read(number) == words


def test_a_number_of_thousands_of_digits_is_read_without_recursing_over_them() -> None:
    assert read("1" * 100_000).startswith("一千")


def test_digits_are_spelled_one_by_one() -> None:
    assert spell("2024") == "二零二四"


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("97年3月5号", "九七年三月五号"), ("12月", "十二月"), ("5万3千元", "五万三千元"), ("3块5毛", "三块五毛"),
        ("+86 13812345678", "八六一三八一二三四五六七八"), ("0512-12345678", "零五一二一二三四五六七八"),
        ("3/4", "四分之三"),
        ("12.5％", "百分之十二点五"), ("20多个人", "二十多个人"), ("2千克", "二千克"),
        ("编号10086", "编号一零零八六"), ("B2B", "B2B"),
        ("５个", "五个"), ("10和10个", "十和十个"), ("你好！（再见）", "你好,,再见,"),
    ],
)  # fmt: skip
def test_a_chinese_line_has_its_numbers_in_characters(text: str, normalized: str) -> None:
    assert normalize(text) == normalized
