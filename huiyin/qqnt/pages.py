"""The pages of a QQNT database on disk: each is read, authenticated and decrypted by itself.

The file is never written to or copied. QQ's header is skipped. If the write-ahead log next to the file (`-wal`, with
the newest messages) has a newer version of a page, that version is used. Formats: SQLite's "Database File Format" for
the log; `huiyin.qqnt.cipher` for the encryption.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher as Aes
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from huiyin.common.errors import UserError
from huiyin.qqnt.cipher import IV_SIZE, PAGE_SIZE, PLAIN_MAGIC, RESERVED, SALT_SIZE, Cipher, encryption_key, mac_key

WAL_MAGIC = 0x377F0682  # odd by one: checksums over big-endian words
WAL_HEADER, FRAME_HEADER = 32, 24
FRAMES_AT_ONCE = 64
LOGGED_TO_TRY = 4  # pages, to tell the log of another database
NO_LOG = np.empty(0, np.int64), np.empty(0, np.int64), 0


class Pages:
    """Reads pages by their numbers, which count from 1; to be closed. `count` is the number of pages that the database
    says it has; `missing` is how many of them are in no file."""

    wal: FileIO | None = None

    def __init__(self, path: Path, cipher: Cipher, key: str | None):
        self.file = FileIO(path)
        self.offset = cipher.offset
        start = os.pread(self.file.fileno(), 100, self.offset)
        self.encrypted = cipher.hmac is not None
        self.size = PAGE_SIZE if self.encrypted else int.from_bytes(start[16:18], "big")
        if self.size == 1:
            self.size = 1 << 16
        if self.size < 512 or self.size & self.size - 1:
            raise UserError(f"{path}: page 1, which says where everything is, is damaged; copy it again with QQ closed")
        if cipher.hmac is not None:
            assert key is not None  # `detect` refuses an encrypted file without a key
            secret = encryption_key(key, start[:SALT_SIZE])
            self.end = self.size - RESERVED[cipher.hmac]  # of the ciphertext; the IV follows
            self.inner, self.outer = keyed_hashes(cipher.hmac.lower(), mac_key(secret, start[:SALT_SIZE]))
            self.aes = Aes(algorithms.AES(secret), modes.ECB()).decryptor()  # `decrypt` undoes the chaining
        self.in_file = (os.fstat(self.file.fileno()).st_size - self.offset) // self.size
        self.logged, self.log_offsets, committed = NO_LOG
        wal = path.with_name(path.name + "-wal")
        if wal.is_file():  # a pipe would be waited for
            self.wal = FileIO(wal)
            self.logged, self.log_offsets, committed = committed_pages(self.wal.fileno(), self.size)
            if self.encrypted and len(self.logged) and not self.read(self.logged[:LOGGED_TO_TRY])[1].any():
                # it is the log of another database
                self.logged, self.log_offsets, committed = NO_LOG
        self.header = bytes(self.read([1])[0][0, :100])
        # the number of pages in the header is 0 where old versions of SQLite did not update it
        stated = int.from_bytes(self.header[28:32], "big") if self.header[24:28] == self.header[92:96] else 0
        self.count = committed or stated or self.in_file
        self.missing = max(0, self.count - self.in_file - int((self.logged > self.in_file).sum()))

    def close(self) -> None:
        self.file.close()
        if self.wal:
            self.wal.close()

    @property
    def usable(self) -> int:
        """Bytes of a page that hold content."""
        return self.size - self.header[20]

    @property
    def encoding(self) -> str:
        """The encoding of all texts, by SQLite's name, which Python knows too."""
        return {2: "UTF-16le", 3: "UTF-16be"}.get(self.header[59], "UTF-8")

    def read(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pages, [page, byte] in uint8, and whether each is sound; one that is not holds zeros."""
        numbers = np.asarray(numbers, np.int64)
        raw = np.zeros((len(numbers), self.size), np.uint8)
        present = self.fill(raw, numbers)
        if not self.encrypted:
            return raw, present
        sound = present & self.authentic(raw, numbers)
        self.decrypt(raw, numbers)
        raw[~sound] = 0
        return raw, sound

    def fill(self, raw: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Read the pages into `raw`, adjacent ones in one call; return whether each is in a file."""
        present = (numbers >= 1) & (numbers <= self.in_file)
        from_file, rows = present.copy(), np.arange(len(numbers))
        if self.wal and len(self.logged):
            index = np.minimum(np.searchsorted(self.logged, numbers), len(self.logged) - 1)
            newer = self.logged[index] == numbers
            for row in rows[newer]:
                os.preadv(self.wal.fileno(), [raw[row].data], int(self.log_offsets[index[row]]))
            present, from_file = present | newer, present & ~newer
        rows = rows[from_file]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(numbers[rows]) != 1)) + 1
        for run in np.split(rows, breaks) if len(rows) else ():
            offset = self.offset + (int(numbers[run[0]]) - 1) * self.size
            os.preadv(self.file.fileno(), [raw[run[0] : run[-1] + 1].data], offset)
        return present

    def authentic(self, raw: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return whether each page carries the right HMAC."""
        content, matches = raw.data.cast("B"), []
        stop, length = self.end + IV_SIZE, self.outer.digest_size
        for begin, number in zip(range(0, raw.size, self.size), numbers.tolist(), strict=True):
            mac, outer = self.inner.copy(), self.outer.copy()
            mac.update(content[begin + (SALT_SIZE if number == 1 else 0) : begin + stop])
            mac.update(number.to_bytes(4, "little"))
            outer.update(mac.digest())
            matches.append(outer.digest() == content[begin + stop : begin + stop + length])
        return np.array(matches, bool)

    def decrypt(self, raw: np.ndarray, numbers: np.ndarray) -> None:
        """Decrypt in place. One call to AES takes the blocks of all pages; the XOR with the block before, which CBC
        adds, is one operation for all pages too."""
        text = np.ascontiguousarray(raw[:, : self.end])
        buffer = np.empty(text.size + 15, np.uint8)  # `update_into` wants room for a block less one byte
        self.aes.update_into(text.data.cast("B"), buffer.data)
        plain = buffer[: text.size].reshape(text.shape)
        plain[:, 16:] ^= text[:, :-16]
        plain[:, :16] ^= raw[:, self.end : self.end + IV_SIZE]
        for row in np.flatnonzero(numbers == 1):  # page 1 begins with the salt: its first block is the second one
            plain[row, 16:32] ^= text[row, :16] ^ raw[row, self.end : self.end + IV_SIZE]
            plain[row, :16] = np.frombuffer(PLAIN_MAGIC, np.uint8)
        raw[:, : self.end] = plain
        raw[:, self.end :] = 0


def keyed_hashes(name: str, key: bytes) -> list[Any]:
    """Return the two hash objects of HMAC with the key hashed already; copying them takes half the time of
    `hmac.digest`, which hashes the key for each page."""
    block = key.ljust(hashlib.new(name).block_size, b"\0")
    return [hashlib.new(name, bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C)]


def committed_pages(wal: int, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the numbers of the pages that the log has (sorted), the offset of the newest committed version of each,
    and the number of pages of the database after the last commit."""
    newest: dict[int, int] = {}
    pending: dict[int, int] = {}
    committed = 0
    for number, count, offset in valid_frames(wal, size):
        pending[number] = offset
        if count:
            committed = count
            newest |= pending
            pending = {}
    numbers = np.array(sorted(newest), np.int64)
    return numbers, np.array([newest[number] for number in numbers.tolist()], np.int64), committed


def valid_frames(wal: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number of the page, pages of the database if this ends a commit else 0, offset of the page) for each frame
    up to the first invalid one; nothing if the log was not written for pages of `size` bytes."""
    header = os.pread(wal, WAL_HEADER, 0)
    magic = int.from_bytes(header[:4], "big")
    if len(header) < WAL_HEADER or magic & ~1 != WAL_MAGIC or int.from_bytes(header[8:12], "big") != size:
        return
    order = ">u4" if magic & 1 else "<u4"
    total = checksum(np.frombuffer(header, order, 6), (0, 0))
    if header[24:32] != b"".join(word.to_bytes(4, "big") for word in total):
        return
    offset, step = WAL_HEADER, FRAME_HEADER + size
    while block := os.pread(wal, step * FRAMES_AT_ONCE, offset):
        for begin in range(0, len(block) - step + 1, step):
            frame = block[begin : begin + step]
            total = checksum(np.frombuffer(frame, order, 2), total)
            total = checksum(np.frombuffer(frame, order, offset=FRAME_HEADER), total)
            number, count, *stored = (int.from_bytes(frame[at : at + 4], "big") for at in (0, 4, 16, 20))
            if frame[8:16] != header[16:24] or tuple(stored) != total:  # older than the last checkpoint, or torn
                return
            yield number, count, offset + begin + FRAME_HEADER
        if len(block) < step * FRAMES_AT_ONCE:
            return
        offset += len(block)


def checksum(words: np.ndarray, start: tuple[int, int]) -> tuple[int, int]:
    """Continue SQLite's checksum (a, b) = `start` over 32-bit words: for each pair (x, y) `a += x + b; b += y + a`. So
    the weights of the words are Fibonacci numbers, 1 for the last: the sums are scalar products."""
    count, words = len(words), words.astype(np.uint32)
    weights = fibonacci(count + 2)
    a, b = (int((words * weights[shift : shift + count][::-1]).sum(dtype=np.uint32)) for shift in (0, 1))
    a += start[0] * int(weights[count - 1]) + start[1] * int(weights[count])
    b += start[0] * int(weights[count]) + start[1] * int(weights[count + 1])
    return a & 0xFFFFFFFF, b & 0xFFFFFFFF


@cache
def fibonacci(count: int) -> np.ndarray:
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-1] + numbers[-2]) & 0xFFFFFFFF)
    return np.array(numbers, np.uint32)
