"""The pages of a QQNT database as they lie on disk: each read, authenticated and decrypted on its own.

The file is only ever read, and nothing is copied: QQ's header is skipped, and where the write-ahead log beside the
file (`-wal`, it holds the newest messages) has a newer version of a page, that one is taken. Formats: SQLite's
"Database File Format" for the log; for the encryption see `qq.cipher`.
"""

import hashlib
import os
from functools import cache
from itertools import pairwise

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher as Aes
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from huiyin.qqnt.cipher import IV_SIZE, PAGE_SIZE, PLAIN_MAGIC, RESERVED, SALT_SIZE, encryption_key, mac_key

WAL_MAGIC = 0x377F0682  # odd by one: checksums over big-endian words
WAL_HEADER, FRAME_HEADER = 32, 24
FRAMES_AT_ONCE = 64


class Pages:
    """Reads pages by their numbers, which count from 1.

    `count` is how many pages the database says it has; `missing` how many of these are in no file.
    """

    def __init__(self, path, cipher, key):
        self.file = os.open(path, os.O_RDONLY)
        self.offset = cipher.offset
        start = os.pread(self.file, 100, self.offset)
        self.encrypted = cipher.hmac is not None
        self.size = PAGE_SIZE if self.encrypted else int.from_bytes(start[16:18], "big")
        if self.size == 1:
            self.size = 1 << 16
        if self.encrypted:
            secret = encryption_key(key, start[:SALT_SIZE])
            self.end = self.size - RESERVED[cipher.hmac]  # where the ciphertext ends and its IV begins
            self.inner, self.outer = keyed_hashes(cipher.hmac.lower(), mac_key(secret, start[:SALT_SIZE]))
            self.aes = Aes(algorithms.AES(secret), modes.ECB()).decryptor()  # the chaining is undone in `decrypt`
        self.in_file = (os.fstat(self.file).st_size - self.offset) // self.size
        self.wal, self.logged, self.places, committed = -1, np.empty(0, np.int64), np.empty(0, np.int64), 0
        wal = path.with_name(path.name + "-wal")
        if wal.exists():
            self.wal = os.open(wal, os.O_RDONLY)
            self.logged, self.places, committed = committed_frames(self.wal, self.size)
        self.header = bytes(self.read([1])[0][0, :100])
        self.count = committed or self.stated() or self.in_file
        self.missing = max(0, self.count - self.in_file - int((self.logged > self.in_file).sum()))

    def stated(self):
        """Return the number of pages in the header; 0 where old versions of SQLite did not keep it up to date."""
        return int.from_bytes(self.header[28:32], "big") if self.header[24:28] == self.header[92:96] else 0

    @property
    def usable(self):
        """Bytes of a page that hold content."""
        return self.size - self.header[20]

    def read(self, numbers):
        """Return the pages (an array of bytes, one row a page) and which of them are sound."""
        numbers = np.asarray(numbers, np.int64)
        raw = np.zeros((len(numbers), self.size), np.uint8)
        there = self.fill(raw, numbers)
        if not self.encrypted:
            return raw, there
        sound = there & self.authentic(raw, numbers)
        self.decrypt(raw, numbers)
        raw[~sound] = 0
        return raw, sound

    def fill(self, raw, numbers):
        """Read the pages into `raw`, neighbours in the file at once; return which of them there are."""
        there = (numbers >= 1) & (numbers <= self.in_file)
        from_file, rows = there.copy(), np.arange(len(numbers))
        if len(self.logged):
            found = np.minimum(np.searchsorted(self.logged, numbers), len(self.logged) - 1)
            newer = self.logged[found] == numbers
            for row in rows[newer]:
                os.preadv(self.wal, [raw[row]], int(self.places[found[row]]))
            there, from_file = there | newer, there & ~newer
        rows = rows[from_file]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(numbers[rows]) != 1)) + 1
        for first, stop in pairwise([0, *breaks.tolist(), len(rows)]):
            if first < stop:
                place = self.offset + (int(numbers[rows[first]]) - 1) * self.size
                os.preadv(self.file, [raw[rows[first] : rows[stop - 1] + 1]], place)
        return there

    def authentic(self, raw, numbers):
        """Return which of the pages carry the right authentication code."""
        content, found = memoryview(raw).cast("B"), []
        stop, length = self.end + IV_SIZE, self.outer.digest_size
        for place, number in zip(range(0, raw.size, self.size), numbers.tolist(), strict=True):
            mac, outer = self.inner.copy(), self.outer.copy()
            mac.update(content[place + (SALT_SIZE if number == 1 else 0) : place + stop])
            mac.update(number.to_bytes(4, "little"))
            outer.update(mac.digest())
            found.append(outer.digest() == content[place + stop : place + stop + length])
        return np.array(found, bool)

    def decrypt(self, raw, numbers):
        """Decrypt in place. All pages go through AES at once as single blocks; XOR with the block before, which CBC
        adds to that, is one operation for all of them too."""
        text = np.ascontiguousarray(raw[:, : self.end])
        plain = np.empty(text.size + 15, np.uint8)
        self.aes.update_into(text.reshape(-1), plain)
        plain = plain[: text.size].reshape(text.shape)
        plain[:, 16:] ^= text[:, :-16]
        plain[:, :16] ^= raw[:, self.end : self.end + IV_SIZE]
        for row in np.flatnonzero(numbers == 1):  # begins with the salt; the first block is the second
            plain[row, 16:32] ^= text[row, :16] ^ raw[row, self.end : self.end + IV_SIZE]
            plain[row, :16] = np.frombuffer(PLAIN_MAGIC, np.uint8)
        raw[:, : self.end] = plain
        raw[:, self.end :] = 0


def keyed_hashes(name, key):
    """Return HMAC's two hash objects with the key taken in, to be copied: twice as fast as `hmac.digest` for pages."""
    block = key.ljust(hashlib.new(name).block_size, b"\0")
    return [hashlib.new(name, bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C)]


def committed_frames(wal, size):
    """Return of the log `wal` the pages it holds (sorted), where the newest committed version of each begins, and the
    number of pages of the database after the last commit; nothing of a log that was not written for this page size."""
    header = os.pread(wal, WAL_HEADER, 0)
    magic = int.from_bytes(header[:4], "big")
    order = ">u4" if magic & 1 else "<u4"
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), 0
    if len(header) < WAL_HEADER or magic & ~1 != WAL_MAGIC or int.from_bytes(header[8:12], "big") != size:
        return nothing
    total = checksum(np.frombuffer(header, order, 6), (0, 0))
    if header[24:32] != b"".join(word.to_bytes(4, "big") for word in total):
        return nothing
    pages, pending, committed, place = {}, {}, 0, WAL_HEADER
    step = FRAME_HEADER + size
    while block := os.pread(wal, step * FRAMES_AT_ONCE, place):
        for begin in range(0, len(block) - step + 1, step):
            frame = block[begin : begin + step]
            total = checksum(np.frombuffer(frame, order, 2), total)
            total = checksum(np.frombuffer(frame, order, offset=FRAME_HEADER), total)
            number, count, *stored = (int.from_bytes(frame[at : at + 4], "big") for at in (0, 4, 16, 20))
            if frame[8:16] != header[16:24] or tuple(stored) != total:  # left from before the last checkpoint, or torn
                block = b""
                break
            pending[number] = place + begin + FRAME_HEADER
            if count:
                committed = count
                pages.update(pending)
                pending = {}
        if len(block) < step * FRAMES_AT_ONCE:
            break
        place += len(block)
    numbers = np.array(sorted(pages), np.int64)
    return numbers, np.array([pages[number] for number in numbers.tolist()], np.int64), committed


def checksum(words, start):
    """Continue SQLite's checksum `start` over 32-bit words: for each pair (x, y) `a += x + b; b += y + a`.

    Each word so counts as often as a Fibonacci number says, the last the least, which makes one product of it.
    """
    count, words = len(words), words.astype(np.uint32)
    weights = fibonacci(count + 2)
    a, b = (int((words * weights[shift : shift + count][::-1]).sum(dtype=np.uint32)) for shift in (0, 1))
    a += start[0] * int(weights[count - 1]) + start[1] * int(weights[count])
    b += start[0] * int(weights[count]) + start[1] * int(weights[count + 1])
    return a & 0xFFFFFFFF, b & 0xFFFFFFFF


@cache
def fibonacci(count):
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-1] + numbers[-2]) & 0xFFFFFFFF)
    return np.array(numbers, np.uint32)
