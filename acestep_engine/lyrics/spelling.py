"""Abbreviations, symbols and ordinals, as the published ACE-Step v1 lyric tokenizer spells them out.

The words are data of a trained model: a wrong-looking one ("misess") is what the model has learnt.
"""

import re

from acestep_engine.languages import Language

# "short=long", in the order in which they are replaced; the short form ends with a dot, in Russian with its word.
_ABBREVIATIONS: dict[Language, str] = {
    "en": "mrs=misess|mr=mister|dr=doctor|st=saint|co=company|jr=junior|maj=major|gen=general|drs=doctors|rev=reverend|"
    "lt=lieutenant|hon=honorable|sgt=sergeant|capt=captain|esq=esquire|ltd=limited|col=colonel|ft=fort",
    "es": "sra=señora|sr=señor|dr=doctor|dra=doctora|st=santo|co=compañía|jr=junior|ltd=limitada",
    "fr": "mme=madame|mr=monsieur|dr=docteur|st=saint|co=compagnie|jr=junior|ltd=limitée",
    "de": "fr=frau|dr=doktor|st=sankt|co=firma|jr=junior",
    "pt": "sra=senhora|sr=senhor|dr=doutor|dra=doutora|st=santo|co=companhia|jr=júnior|ltd=limitada",
    "it": "sig=signore|dr=dottore|st=santo|co=compagnia|jr=junior|ltd=limitata",
    "pl": "p=pani|m=pan|dr=doktor|sw=święty|jr=junior",
    "cs": "dr=doktor|ing=inženýr|p=pan",
    "ru": "г-жа=госпожа|г-н=господин|д-р=доктор",
    "nl": "dhr=de heer|mevr=mevrouw|dr=dokter|jhr=jonkheer",
    "tr": "b=bay|byk=büyük|dr=doktor",
    "hu": "dr=doktor|b=bácsi|nőv=nővér",
}

_SYMBOLS = "&@%#$£°"
_SYMBOL_WORDS: dict[Language, str] = {
    "en": "and|at|percent|hash|dollar|pound|degree",
    "es": "y|arroba|por ciento|numeral|dolar|libra|grados",
    "fr": "et|arobase|pour cent|dièse|dollar|livre|degrés",
    "de": "und|at|prozent|raute|dollar|pfund|grad",
    "pt": "e|arroba|por cento|cardinal|dólar|libra|graus",
    "it": "e|chiocciola|per cento|cancelletto|dollaro|sterlina|gradi",
    "pl": "i|małpa|procent|krzyżyk|dolar|funt|stopnie",
    "ar": "و|على|في المئة|رقم|دولار|جنيه|درجة",
    "zh": "和|在|百分之|号|美元|英镑|度",
    "cs": "a|na|procento|křížek|dolar|libra|stupně",
    "ru": "и|собака|процентов|номер|доллар|фунт|градус",
    "nl": "en|bij|procent|hekje|dollar|pond|graden",
    "tr": "ve|at|yüzde|diyez|dolar|sterlin|derece",
    "hu": "és|kukac|százalék|kettőskereszt|dollár|font|fok",
    "ko": "그리고|에|퍼센트|번호|달러|파운드|도",
}

# What after a number makes it an ordinal; alternatives are tried from left to right.
_ORDINAL_SUFFIXES: dict[Language, str] = {
    "en": "st|nd|rd|th",
    "es": "º|ª|er|o|a|os|as",
    "fr": "º|ª|er|re|e|ème",
    "de": r"st|nd|rd|th|º|ª|\.(?=\s|$)",
    "pt": "º|ª|o|a|os|as",
    "it": "º|°|ª|o|a|i|e",
    "pl": "º|ª|st|nd|rd|th",
    "ar": "ون|ين|ث|ر|ى",
    "cs": r"\.(?=\s|$)",
    "ru": "-й|-я|-е|-ое|-ье|-го",
    "nl": "de|ste|e",
    "tr": r"\.|inci|nci|uncu|üncü",
    "hu": r"\.|adik|edik|odik|ödik|ödike|ik",
    "ko": "번째|번|차|째",
}

# What stands between the units and the cents in num2words' amounts.
CENTS_JOINER: dict[Language, str] = {
    "es": " con ", "fr": " et ", "de": " und ", "pt": " e ", "it": " e ",
    **dict.fromkeys(("en", "pl", "cs", "ru", "nl", "ar", "tr", "hu", "ko"), ", "),
}  # fmt: skip

SPELLED_LANGUAGES = frozenset(_SYMBOL_WORDS)  # Hindi and Japanese are left as they are written


def _abbreviation_patterns(language: Language) -> list[tuple[re.Pattern[str], str]]:
    pairs = (pair.split("=") for pair in _ABBREVIATIONS.get(language, "").split("|") if pair)
    end = r"\b" if language == "ru" else r"\."
    return [(re.compile(rf"\b{short}{end}", re.IGNORECASE), long) for short, long in pairs]


_ABBREVIATION_PATTERNS = {language: _abbreviation_patterns(language) for language in SPELLED_LANGUAGES}
_SYMBOL_TABLES = {
    language: {ord(symbol): f" {word} " for symbol, word in zip(_SYMBOLS, words.split("|"), strict=True)}
    for language, words in _SYMBOL_WORDS.items()
}
# The lookbehind starts a match only at the first digit of a number, so that a long one is read once.
ORDINALS = {
    language: re.compile(rf"(?<![0-9])([0-9]++)(?:{suffixes})") for language, suffixes in _ORDINAL_SUFFIXES.items()
}


def expand_abbreviations(text: str, language: Language) -> str:
    """ "dr. smith" to "doctor smith". One abbreviation after the other: a longer one can shadow a later one."""
    for pattern, word in _ABBREVIATION_PATTERNS[language]:
        text = pattern.sub(word, text)
    return text


def expand_symbols(text: str, language: Language) -> str:
    """The symbols & @ % # $ £ ° to words between spaces."""
    return text.translate(_SYMBOL_TABLES[language])
