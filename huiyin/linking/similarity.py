"""How similar two texts are, in any language: tf-idf of character n-grams, and of words."""

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from scipy import sparse

BUCKETS = 2**20  # of hashed n-grams
NGRAMS = (2, 3, 4)
WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")  # a CJK character is a word


def character_weights(texts: Sequence[str]) -> sparse.csr_matrix:
    """Return tf-idf of the character n-grams of each text: [text, bucket], rows of length 1."""
    rows, buckets = hashed_ngrams(texts)
    return tf_idf(rows, buckets, (len(texts), BUCKETS))


def word_weights(texts: Sequence[str]) -> sparse.csr_matrix:
    """Return tf-idf of the words of each text: [text, word], rows of length 1."""
    codes: dict[str, int] = {}
    words = [WORD.findall(text.lower()) for text in texts]
    columns = [codes.setdefault(word, len(codes)) for word in chain.from_iterable(words)]
    rows = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in words])
    return tf_idf(rows, np.array(columns, int), (len(texts), max(1, len(codes))))


def hashed_ngrams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (text, bucket) of every character n-gram of `texts`, as two arrays.

    All texts are hashed as one array of code points, with a 0 between two; n-grams that contain a 0 are left out.
    """
    texts = [text.replace("\0", " ") for text in texts]
    joined = np.frombuffer("\0".join(texts).lower().encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    separator = joined == 0
    document = np.cumsum(separator)
    rows, buckets = [], []
    for size in NGRAMS:
        count = len(joined) - size + 1
        if count < 1:
            continue
        value, crosses = np.full(count, size, np.uint64), np.zeros(count, bool)
        for offset in range(size):
            value = value * np.uint64(0x9E3779B97F4A7C15) + joined[offset : offset + count]
            value ^= value >> np.uint64(29)
            crosses |= separator[offset : offset + count]
        rows.append(document[:count][~crosses])
        buckets.append((value % np.uint64(BUCKETS)).astype(np.int64)[~crosses])
    return (np.concatenate(rows), np.concatenate(buckets)) if rows else (np.zeros(0, int), np.zeros(0, int))


def tf_idf(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return (1 + log tf) (1 + log((n + 1) / (df + 1))), its rows scaled to length 1; n: number of rows."""
    counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)
    counts.sum_duplicates()
    documents = np.bincount(counts.indices, minlength=shape[1])
    idf = np.log((shape[0] + 1) / (documents + 1)).astype(np.float32) + 1
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(1)).ravel())
    return sparse.diags(1 / np.maximum(lengths, 1e-9)) @ counts


def products(matrix: sparse.csr_matrix, left: np.ndarray, right: np.ndarray) -> sparse.csr_matrix:
    """Return the products of the rows `left` and `right` of `matrix`, element by element; their sums are cosines."""
    return matrix[left.ravel()].multiply(matrix[right.ravel()]).tocsr()


def cosine(product: sparse.csr_matrix, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(product.sum(1), np.float32).reshape(shape)


def greatest_part(product: sparse.csr_matrix, shape: tuple[int, ...]) -> np.ndarray:
    """Return what the rarest n-gram or word that both texts contain adds to the cosine."""
    return product.max(1).toarray().reshape(shape)
