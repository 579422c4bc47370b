"""Take personal data out of texts: what can be told by its form, and the numbers of people and groups of this history.

python-stdnum knows the checksums, phonenumbers (Google's libphonenumber) which numbers are telephones in China: two
small libraries for what has a fixed form. Frameworks for personal data at large (Presidio and others) were not tried.
"""

import re
from collections import Counter

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
# digits may be written in groups; what stands in a longer run of digits is no number of its own
ID_CARD = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{5}[ -]?\d{8}[ -]?\d{3}[\dXx](?![0-9A-Za-z])", re.ASCII)
BANK_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){14,18}(?!\d)", re.ASCII)
NUMBER = re.compile(r"(?<!\d)\d{5,}(?!\d)", re.ASCII)  # QQ's shortest accounts and groups have five digits
ENOUGH_DIGITS = re.compile(r"\d(?:[^\w]*\d){6}")  # the shortest telephone number; spares most texts the search


class Redaction:
    """Replaces personal data by a placeholder of its kind; `counts` says how often.

    `accounts`: user and group ids of the history; `names`: those of people, to be replaced too (default none).
    """

    def __init__(self, accounts, names=()):
        self.accounts = set(accounts)
        longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self.names = re.compile("|".join(map(bounded, longest_first))) if longest_first else None
        self.counts = Counter()

    def __call__(self, text):
        text = MAIL.sub(lambda found: self.replaced("mail"), text)
        text = self.replace_if(ID_CARD, mod_11_2.is_valid, "id_card", text)
        text = self.replace_if(BANK_CARD, luhn.is_valid, "bank_card", text)
        text = self.replace_if(NUMBER, self.accounts.__contains__, "account", text)
        if ENOUGH_DIGITS.search(text):
            # from the end, so that the places of the others stay
            for found in reversed(list(phonenumbers.PhoneNumberMatcher(text, "CN"))):
                text = text[: found.start] + self.replaced("phone") + text[found.end :]
        if self.names:
            text = self.names.sub(lambda found: self.replaced("name"), text)
        return text

    def replaced(self, kind):
        self.counts[kind] += 1
        return PLACEHOLDER[kind]

    def replace_if(self, pattern, valid, kind, text):
        def look_at(found):
            digits = found[0].replace(" ", "").replace("-", "").upper()
            return self.replaced(kind) if valid(digits) else found[0]

        return pattern.sub(look_at, text)


def bounded(name):
    """A pattern for `name` that does not find `Al` in `Also`."""
    before = r"(?<![0-9A-Za-z_])" if name[0].isascii() and name[0].isalnum() else ""
    after = r"(?![0-9A-Za-z_])" if name[-1].isascii() and name[-1].isalnum() else ""
    return before + re.escape(name) + after
