"""Numbers of a Chinese line in characters: dates, money, telephone numbers, fractions, percentages, counts, digits.

What the published tokenizer does through chn_text_norm, down to this: each step lists the numbers that it
recognises, then replaces for each the first place where the same characters stand. Digits are Unicode's, so "５" is 5.
"""

import re
from collections.abc import Callable

_DIGITS = "零一二三四五六七八九"
_UNITS = "十百千万亿兆京垓秭穰沟涧正载"
_POWERS = dict(zip(_UNITS, [1, 2, 3, *range(4, 45, 4)], strict=True))

_SCALE = "(?:亿|千万|百万|万|千|百)"
_MONEY_UNIT = f"(?:{_SCALE}|元|块|角|毛|分)"  # a scale ends the match: what follows it (元, 块) has no number in it
_COUNTED = (
    "匹张座回场尾条个首阙阵网炮顶丘棵只支袭辆挑担颗壳窠曲墙群腔砣客贯扎捆刀令打手罗坡山岭江溪钟队单双对出口头脚板跳枝件贴"
    "针线管名位身堂课本页家户层丝毫厘分钱两斤铢石钧锱忽寸尺丈里寻常铺程撮勺合升斗盘碗碟叠桶笼盆盒杯斛锅簋篮罐瓶壶卮盏箩箱煲"
    "啖袋钵年月日季刻时周天秒旬纪岁世更夜春夏秋冬代伏辈丸泡粒幢堆根道面片块"
)

_YEAR = r"(?:[089]\d|(?:19|20)\d{2})年"
_MONTH = r"\d{1,2}月(?:\d{1,2}[日号])?"
_DATE = re.compile(rf"\D({_YEAR}(?:{_MONTH})?|{_MONTH})")
_MONEY = re.compile(rf"\D(\d+(?:\.\d+)?[多余几]?{_MONEY_UNIT}(?:\d{_MONEY_UNIT}?)?)")
_MOBILE_NUMBER = re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D")
_FIXED_NUMBER = re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D")
# From here on a match starts at the first digit of a number, so that a long one is read once.
_FRACTION = re.compile(r"(?<!\d)\d++/\d++")
_PERCENTAGE = re.compile(r"(?<!\d)\d++(?:\.\d++)?%")
_COUNT = re.compile(rf"(?<!\d)(\d++(?:\.\d++)?)[多余几]?(?:[{_COUNTED}]|[千微][克米])")
_LONG_NUMBER = re.compile(r"\d{4,32}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LETTERS_AROUND_TWO = re.compile(r"(?<![a-zA-Z])([a-zA-Z]++)二([a-zA-Z]++)")

_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧"
    "﹏·〈〉!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
)
_TO_COMMAS = str.maketrans(dict.fromkeys(_PUNCTUATION, ","))


def normalize(text: str) -> str:
    """`text` with its numbers in characters and its punctuation as commas."""
    text = f"^{text}$"  # the ends count as neighbours that are no digits
    text = _replace_first(text, _DATE.findall(text), _date)
    text = _replace_first(text, _MONEY.findall(text), _money)
    text = _replace_first(text, _MOBILE_NUMBER.findall(text), lambda number: spell("".join(number.strip("+").split())))
    text = _replace_first(text, _FIXED_NUMBER.findall(text), lambda number: spell(number.replace("-", "")))
    text = _replace_first(text, _FRACTION.findall(text), _fraction)
    text = text.replace("％", "%")
    text = _replace_first(text, _PERCENTAGE.findall(text), lambda share: "百分之" + read(share[:-1]))
    text = _replace_first(text, _COUNT.findall(text), read)
    text = _replace_first(text, _LONG_NUMBER.findall(text), spell)
    text = _replace_first(text, _NUMBER.findall(text), read)
    text = _replace_first(text, [match[0] for match in _LETTERS_AROUND_TWO.finditer(text)], _restore_two)
    return text.lstrip("^").rstrip("$").translate(_TO_COMMAS)


def spell(digits: str) -> str:
    """Digit by digit: "2024" to 二零二四."""
    return "".join(_DIGITS[int(digit)] for digit in digits)


def read(number: str) -> str:
    """As a number, with at most one point: "120.5" to 一百二十点五, "2000" to 两千, "12" to 十二."""
    whole, point, decimals = number.partition(".")
    symbols = _read_whole(whole) if len(whole) > 1 else [spell(whole)]
    symbols = [_two(symbols, i) if symbol == "二" else symbol for i, symbol in enumerate(symbols)]
    text = "".join(symbols) + ("点" + spell(decimals) if point else "")
    if text.startswith("点"):
        return "零" + text
    return text.removeprefix("一") if text.startswith("一十") else text


def _read_whole(digits: str) -> list[str]:
    """Digits and units, one a string. Zeros in front of a single digit are read as one 零, others not."""
    parts: list[list[str]] = []
    significant = digits.lstrip("0")
    while len(significant) > 1:
        unit = next(unit for unit in reversed(_UNITS) if _POWERS[unit] < len(significant))
        parts.append([unit, *_read_whole(significant[-_POWERS[unit] :])])
        digits = digits[: -_POWERS[unit]]
        significant = digits.lstrip("0")
    if significant:
        parts.append(["零", spell(significant)] if len(digits) > 1 else [spell(significant)])
    return [symbol for part in reversed(parts) for symbol in part]


def _two(symbols: list[str], i: int) -> str:
    """两 instead of 二 before every unit but 十, at the start or after a unit other than 十."""
    before = symbols[i - 1] if i > 0 else None
    after = symbols[i + 1] if i + 1 < len(symbols) else None
    starts = before is None or (before in _POWERS and before != "十")
    return "两" if starts and after in _POWERS and after != "十" else "二"


def _replace_first(text: str, found: list[str], convert: Callable[[str], str]) -> str:
    for number in found:
        text = text.replace(number, convert(number), 1)
    return text


def _date(date: str) -> str:
    year, mark, rest = date.rpartition("年")
    month, month_mark, day = rest.rpartition("月")
    return (
        (spell(year) + mark if mark else "")
        + (read(month) + month_mark if month_mark else "")
        + (read(day[:-1]) + day[-1] if day else "")
    )


def _money(amount: str) -> str:
    for number in _NUMBER.findall(amount):
        amount = amount.replace(number, read(number))
    return amount


def _fraction(fraction: str) -> str:
    numerator, _, denominator = fraction.partition("/")
    return f"{read(denominator)}分之{read(numerator)}"


def _restore_two(name: str) -> str:
    return name.replace("二", "2")  # P2P, B2B
