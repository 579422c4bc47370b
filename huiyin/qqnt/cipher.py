"""How QQNT encrypts a database file: a 1024-byte header of its own, then SQLCipher 4 with other parameters.

Nothing here needs SQLCipher: the HMAC of page 1 shows in milliseconds, with hashlib alone, whether a key is right and
which parameters apply. SQLCipher itself only reports "file is not a database". Format: SQLCipher's "Security Design".
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from huiyin.common.errors import UserError
from huiyin.qqnt.qqnt_pb2 import Header

HEADER_SIZE = 1024
PAGE_SIZE = 4096
PAGES_TO_TRY = 4  # to tell a damaged page 1 from a wrong key
SALT_SIZE = 16  # first bytes of page 1
IV_SIZE = 16
KDF_ITERATIONS = 4000
RESERVED = {"SHA1": 48, "SHA256": 48, "SHA512": 80}  # bytes at the end of a page: IV, HMAC, padding

PLAIN_MAGIC = b"SQLite format 3\0"
HEADER_MAGIC = b"SQLite header 3\0"  # "header", not "format"
HEADER_MARK = b"QQ_NT DB"  # at byte 32
HEADER_START = HEADER_MAGIC + bytes.fromhex("04001000") + bytes(12) + HEADER_MARK


class WrongKey(UserError):
    """The key does not open the database."""


@dataclass(frozen=True)
class Cipher:
    """The parameters of a file: the offset of its SQLite pages in bytes, and the HMAC if they are encrypted."""

    offset: int = 0
    hmac: str | None = None

    def pragmas(self, key: str | None) -> list[str]:
        """Return the statements that open the pages with `key`; all must come before the first read."""
        if self.hmac is None or key is None:
            return []
        return [
            "PRAGMA cipher_log_level = NONE",
            f"PRAGMA key = {quoted(key)}",
            f"PRAGMA cipher_page_size = {PAGE_SIZE}",
            f"PRAGMA kdf_iter = {KDF_ITERATIONS}",
            f"PRAGMA cipher_hmac_algorithm = HMAC_{self.hmac}",
            "PRAGMA cipher_kdf_algorithm = PBKDF2_HMAC_SHA512",
        ]


def is_plain(start: bytes) -> bool:
    return start.startswith(PLAIN_MAGIC)


def has_header(start: bytes) -> bool:
    return start.startswith(HEADER_MAGIC) or start[32:40] == HEADER_MARK


def read_header(start: bytes) -> Header:
    """Return the protobuf in the header, an empty one if it cannot be read."""
    length = int.from_bytes(start[40:44], "little")
    try:
        return Header.FromString(start[44 : min(44 + length, HEADER_SIZE)])
    except DecodeError:
        return Header()


def build_header(header: Header) -> bytes:
    content = header.SerializeToString()
    return (HEADER_START + len(content).to_bytes(4, "little") + content).ljust(HEADER_SIZE, b"\0")


def is_raw(key: str) -> bool:
    """Whether `key` is the derived key, alone or with its salt, rather than a passphrase."""
    return re.fullmatch(r"[0-9A-Fa-f]{64}([0-9A-Fa-f]{32})?", key) is not None


def quoted(key: str) -> str:
    """Return `key` as a literal for PRAGMA, which takes no bound parameters; a raw key is a blob literal."""
    return f"\"x'{key}'\"" if is_raw(key) else "'" + key.replace("'", "''") + "'"


def encryption_key(key: str, salt: bytes) -> bytes:
    if is_raw(key):
        return bytes.fromhex(key[:64])
    return hashlib.pbkdf2_hmac("sha512", key.encode(), salt, KDF_ITERATIONS, 32)


def mac_key(secret: bytes, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", secret, bytes(byte ^ 0x3A for byte in salt), 2, 32)


def hmac_matches(page: bytes, number: int, key: bytes, name: str) -> bool:
    """Whether `page`, whose number in the file is `number`, ends with its HMAC `name` under the MAC key `key`."""
    begin, end = SALT_SIZE if number == 1 else 0, PAGE_SIZE - RESERVED[name] + IV_SIZE
    mac = hmac.digest(key, page[begin:end] + number.to_bytes(4, "little"), name.lower())
    return hmac.compare_digest(mac, page[end : end + len(mac)])


def detect(path: Path, key: str | None) -> Cipher:
    """Return the `Cipher` of the database at `path`; `WrongKey` or another `UserError` if `key` does not open it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(HEADER_SIZE + PAGE_SIZE * PAGES_TO_TRY)
    if not start:
        raise UserError(f"{path}: is empty; copy it again with QQ closed")
    if is_plain(start):
        return Cipher()
    if not has_header(start) and size % PAGE_SIZE not in (0, HEADER_SIZE):
        raise UserError(f"{path}: not a QQNT database; give the nt_msg.db of your account")
    if len(start) < PAGE_SIZE + (HEADER_SIZE if has_header(start) else 0):
        raise UserError(f"{path}: truncated, only {size:,} bytes; copy it again with QQ closed")
    if key is None:
        raise UserError(f"{path}: encrypted; give the key in QQ_DB_KEY or in the file named by --key")

    named = read_header(start).hmac.decode("ascii", "replace").removeprefix("HMAC_")
    for offset in (HEADER_SIZE, 0):
        pages = [start[begin : begin + PAGE_SIZE] for begin in range(offset, len(start) - PAGE_SIZE + 1, PAGE_SIZE)]
        if not pages:
            continue
        salt = pages[0][:SALT_SIZE]
        secret = mac_key(encryption_key(key, salt), salt)
        for name in sorted(RESERVED, key=lambda name: name != named):  # first the one that the header names
            sound = [number for number, page in enumerate(pages, 1) if hmac_matches(page, number, secret, name)]
            if sound[:1] == [1]:
                return Cipher(offset, name)
            if sound:
                raise UserError(
                    f"{path}: the key is right, but page 1, which says where everything is, is damaged; "
                    "copy it again with QQ closed"
                )
    if not has_header(start):
        raise WrongKey(f"{path}: not a QQNT database, or the key is wrong for it")
    if named and named not in RESERVED:
        raise WrongKey(f"{path}: wrong key, or a newer QQ: its header names HMAC_{named}, which is not known here")
    raise WrongKey(f"{path}: wrong key; get it again for the account this file belongs to")
