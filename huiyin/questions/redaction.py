"""Replace personal data in texts: what its form tells, and the numbers of people and groups of this history.

python-stdnum checks the checksums, phonenumbers (Google's libphonenumber) which numbers are telephones in China: two
small libraries for data of a fixed form. Larger frameworks for personal data (Presidio and others) were not tried.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

import phonenumbers
from stdnum import luhn
from stdnum.iso7064 import mod_11_2

PLACEHOLDER = {
    "mail": "[邮箱]",
    "id_card": "[身份证号]",
    "bank_card": "[银行卡号]",
    "account": "[QQ号]",
    "phone": "[电话]",
    "name": "[名字]",
}
MAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
# digits may be written in groups; a part of a longer run of digits is no number of its own
ID_CARD = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{5}[ -]?\d{8}[ -]?\d{3}[\dXx](?![0-9A-Za-z])", re.ASCII)
BANK_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){14,18}(?!\d)", re.ASCII)
NUMBER = re.compile(r"(?<!\d)\d{5,}(?!\d)", re.ASCII)  # QQ's shortest accounts and groups have five digits
ENOUGH_DIGITS = re.compile(r"\d(?:[^\w]*\d){6}")  # the shortest telephone number; most texts need no search


class Redaction:
    """Replaces personal data by a placeholder of its kind, and counts the replacements in `counts`.

    accounts: user and group ids of the history. names: names of people, to be replaced too.
    """

    def __init__(self, accounts: Iterable[str], names: Iterable[str] = ()) -> None:
        self.accounts = set(accounts)
        longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self.names = re.compile("|".join(map(bounded, longest_first))) if longest_first else None
        self.counts: Counter[str] = Counter()

    def __call__(self, text: str) -> str:
        text = MAIL.sub(lambda match: self.replaced("mail"), text)
        text = self.replace_if(ID_CARD, mod_11_2.is_valid, "id_card", text)
        text = self.replace_if(BANK_CARD, luhn.is_valid, "bank_card", text)
        text = self.replace_if(NUMBER, self.accounts.__contains__, "account", text)
        if ENOUGH_DIGITS.search(text):
            # from the end, so that the positions of the earlier ones stay valid
            for match in reversed(list(phonenumbers.PhoneNumberMatcher(text, "CN"))):
                text = text[: match.start] + self.replaced("phone") + text[match.end :]
        if self.names:
            text = self.names.sub(lambda match: self.replaced("name"), text)
        return text

    def replaced(self, kind: str) -> str:
        self.counts[kind] += 1
        return PLACEHOLDER[kind]

    def replace_if(self, pattern: re.Pattern[str], valid: Callable[[str], bool], kind: str, text: str) -> str:
        def replacement(match):
            digits = match[0].replace(" ", "").replace("-", "").upper()
            return self.replaced(kind) if valid(digits) else match[0]

        return pattern.sub(replacement, text)


def bounded(name: str) -> str:
    """Return a pattern for `name` that does not find `Al` in `Also`."""
    before = r"(?<![0-9A-Za-z_])" if name[0].isascii() and name[0].isalnum() else ""
    after = r"(?![0-9A-Za-z_])" if name[-1].isascii() and name[-1].isalnum() else ""
    return before + re.escape(name) + after
