"""Habits of writing: how far generated replies are from the member's real ones, habit by habit.

Each habit gives labels to a text: the faces it holds, the class of its length. The labels of a text share a weight of
1, so that texts have a distribution of labels. The distance of two distributions is half the sum of the absolute
differences (total variation, 0 to 1): the share of the replies that would have to change.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np

from huiyin.questions.redaction import PLACEHOLDER
from huiyin.voice.sampling import MOST_LEARNT, MOST_TESTED, Texts, cut, sample, size_class

Messages = list[str]  # of one text
Found = dict[str, dict[str, float | None]]

DRAWS = 200
CJK = "\u3040-\u30ff\u3400-\u9fff"
LINK = re.compile(r"(?:https?://|www\.)[!-~]+", re.IGNORECASE)
# [捂脸], but no placeholder of the redaction; /捂脸, whose end nothing marks: most names of QQ's faces have two
# characters; emoji without their modifiers; :) and the like
FACE = (
    rf"(?:(?!{'|'.join(map(re.escape, PLACEHOLDER.values()))})\[[^\[\]\s]{{1,8}}\]|/[\u4e00-\u9fff]{{2}}"
    r"|[\U0001f1e6-\U0001f1ff\U0001f300-\U0001f3fa\U0001f400-\U0001faff\u2600-\u27bf\u2b50\u2b55]\ufe0f?"
    r"|(?<![0-9A-Za-z])(?:[:;=]-?[()DPp]|<3|[Xx]D)(?![0-9A-Za-z]))"
)
FACES, LAST_FACE = re.compile(FACE), re.compile(rf"{FACE}\s*$")
MARK = re.compile(r"[!-/:-@\[-`{-~、。〈-】〔-〟！-／：-＠［-｀｛-･·‘-”…—～]")
LAST_MARK, MARKS_AT_THE_END = re.compile(rf"({MARK.pattern})\s*$"), re.compile(rf"(?:{MARK.pattern}|\s)+$")
LAST_PARTICLE = re.compile(r"[吧吗呢啊哦嘛啦呀哇呗咯喔噢]$")
REPEATED = re.compile(r"(\S{1,3}?)\1{2,}")  # 哈哈哈, hahaha, ~~~, 666
WORD, CJK_RUN = re.compile(rf"[^\W\d_{CJK}]+"), re.compile(rf"[{CJK}]+")

LONGEST_WORD = 3  # characters of Chinese, where nothing parts the words
TYPICAL_WORDS, LEAST_Z, LEAST_TEXTS = 50, 3.0, 5
PRIOR = 500.0  # what the prior of a word's rate weighs, in words


def measure_habits(
    real: Texts, replies: dict[str, Texts], member: Texts, others: Texts, separator: str, seed: int
) -> Found:
    """Compare the habits of each model's replies with those of the member's real ones, to the same prompts.

    member, others: turns before the evaluation cut, which the member's typical words are of; at most 10,000 of a side,
    drawn at random. separator: what joins the messages of a text; it is no punctuation. 300 characters of a text count.

    Returns {habit: {"real", "trained", "base", "distance_trained", "distance_base", "distance_of_halves"}}, a column
    for each name in `replies`. The first are the mean for a habit of NUMBERS, for the others the share of texts (of
    messages, where the habit is about how they begin or end). Distances are means over 200 random draws, all of them
    between samples of one size, half the real replies or all of a model's if they are fewer: `distance_of_halves`, of
    two separate halves of the real replies, is as near as anyone can come. None where texts are missing.
    """
    texts = {"real": sample(real, MOST_TESTED, seed), **{name: cut(of_one) for name, of_one in replies.items()}}
    messages = {name: [split(text, separator) for text in of_one] for name, of_one in texts.items()}
    words = typical_words(sample(member, MOST_LEARNT, seed), sample(others, MOST_LEARNT, seed))
    found: Found = {}
    for habit, number in NUMBERS.items():
        numbers = {name: [number(of_text) for of_text in of_one] for name, of_one in messages.items()}
        labels = {name: [[str(size_class(value))] for value in of_one] for name, of_one in numbers.items()}
        found[habit] = {**{name: mean(of_one) for name, of_one in numbers.items()}, **distances(labels, seed)}
    for habit, labels_of in {**LABELS, "typical_words": lambda of_text: words_of(of_text) & words}.items():
        labels = {name: [list(labels_of(of_text)) or [""] for of_text in of_one] for name, of_one in messages.items()}
        shares = {name: mean([fmean(map(bool, of_text)) for of_text in of_one]) for name, of_one in labels.items()}
        found[habit] = {**shares, **distances(labels, seed)}
    return found


def split(text: str, separator: str) -> Messages:
    """Return the messages of a text; a blank text is one empty message."""
    return [message for message in (text.split(separator) if separator else [text]) if message.strip()] or [""]


def plain(message: str) -> str:
    """Return a message without its links and faces."""
    return FACES.sub(" ", LINK.sub(" ", message))


def marks(messages: Messages) -> list[str]:
    return [mark for message in messages for mark in MARK.findall(plain(message))]


def faces(messages: Messages) -> list[str]:
    return [face for message in messages for face in FACES.findall(LINK.sub(" ", message))]


def last_marks(messages: Messages) -> list[str]:
    """Return for each message the punctuation mark it ends with, "" for none; a link or a face is none."""
    ends = [None if LAST_FACE.search(message) else LAST_MARK.search(LINK.sub("x", message)) for message in messages]
    return [end[1] if end else "" for end in ends]


def particles(messages: Messages) -> list[str]:
    """Return for each message the particle at the end of its words, "" for none."""
    ends = [LAST_PARTICLE.search(MARKS_AT_THE_END.sub("", plain(message))) for message in messages]
    return [end[0] if end else "" for end in ends]


def repeats(messages: Messages) -> list[str]:
    """Return the letters of each part that stands three times or more in a row: "ah" for hahaha and ahahah."""
    return ["".join(sorted(set(part))) for message in messages for part in REPEATED.findall(plain(message).lower())]


def small_first_letters(messages: Messages) -> list[str]:
    return ["small" if message.lstrip()[:1].islower() else "" for message in messages]


NUMBERS: dict[str, Callable[[Messages], float]] = {
    "characters": lambda messages: sum(map(len, messages)),
    "messages": len,
    "marks_per_100_characters": lambda messages: 100 * len(marks(messages)) / max(1, sum(map(len, messages))),
}
LABELS: dict[str, Callable[[Messages], Any]] = {
    "punctuation": marks,
    "punctuation_at_the_end": last_marks,
    "faces": faces,
    "particles": particles,
    "repeated_letters": repeats,
    "links": lambda messages: ["link"] if any(map(LINK.search, messages)) else [],
    "small_first_letter": small_first_letters,
}


def words_of(messages: Messages) -> set[str]:
    """Return the words of a text, in Chinese its sequences of one to three characters."""
    found = {word for message in messages for word in WORD.findall(message.lower())}
    for run in (run for message in messages for run in CJK_RUN.findall(message)):
        found.update(run[at : at + size] for size in range(1, LONGEST_WORD + 1) for at in range(len(run) - size + 1))
    return found


def typical_words(member: Texts, others: Texts) -> set[str]:
    """Return the words, 50 at most, that most clearly stand in more texts of the member than of the others.

    By the z-score of the log odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, Fightin'
    Words, equations 16 and 22), the prior being the rate in all texts; with rates for odds, which of rare words are the
    same. A word counts once a text, so that one long text decides nothing.
    """
    counts = Counter(word for text in member for word in words_of([text]))
    total, of_others, total_of_others = counts.total(), Counter[str](), 0
    counts = Counter({word: count for word, count in counts.items() if count >= LEAST_TEXTS})
    for text in others:
        words = words_of([text])
        total_of_others += len(words)
        of_others.update(words & counts.keys())

    def z_score(word: str) -> float:
        prior = PRIOR * (counts[word] + of_others[word]) / (total + total_of_others)
        first, second = counts[word] + prior, of_others[word] + prior
        ratio = math.log(first / (total + PRIOR)) - math.log(second / (total_of_others + PRIOR))
        return ratio / math.sqrt(1 / first + 1 / second)

    scores = {word: z_score(word) for word in counts}
    return set(sorted((word for word in scores if scores[word] > LEAST_Z), key=scores.__getitem__)[-TYPICAL_WORDS:])


def distances(labels: dict[str, list[list[str]]], seed: int) -> dict[str, float | None]:
    """Return `distance_NAME` of each model to the real replies, and `distance_of_halves`: see measure_habits."""
    names = sorted({label for of_one in labels.values() for of_text in of_one for label in of_text})
    columns = {label: column for column, label in enumerate(names)}
    weights = {name: np.zeros((len(of_one), len(columns))) for name, of_one in labels.items()}
    for name, of_one in labels.items():
        for row, of_text in enumerate(of_one):
            for label in of_text:
                weights[name][row, columns[label]] += 1 / len(of_text)
    real = weights.pop("real")
    models = {name: of_one for name, of_one in weights.items() if len(of_one)}
    size = min([len(real) // 2, *map(len, models.values())])
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in ["of_halves", *weights]}
    for _ in range(DRAWS if size else 0):
        order = random.permutation(len(real))
        half = real[order[:size]].mean(0)
        drawn = {"of_halves": real[order[-size:]]}
        drawn |= {
            name: of_one[random.permutation(len(of_one))[:size]] for name, of_one in weights.items() if len(of_one)
        }
        for name, rows in drawn.items():
            found[name].append(float(np.abs(half - rows.mean(0)).sum() / 2))
    return {f"distance_{name}": mean(of_one) for name, of_one in found.items()}


def mean(values: list[float]) -> float | None:
    return round(fmean(values), 4) if values else None


def say(result: Found) -> str:
    """Return one sentence about what `measure_habits` has found."""
    said = {}
    for column in ("distance_trained", "distance_base", "distance_of_halves"):
        shown = [row for row in result.values() if any(row.values())]  # a habit that nobody has says nothing
        values = [value for row in shown if (value := row[column]) is not None]
        said[column] = f"{fmean(values):.2f}" if values else "unknown"
    counts = {name: result["messages"][name] for name in ("real", "trained", "base")}
    sent = {name: "unknown" if count is None else f"{count:.2f}" for name, count in counts.items()}
    return (
        f"Habits: mean distance to the real replies {said['distance_trained']} (trained), {said['distance_base']} "
        f"(base), {said['distance_of_halves']} between two halves of the real replies (0: equal, 1: nothing in common)."
        f" Messages in a reply: {sent['real']} (real), {sent['trained']} (trained), {sent['base']} (base)."
    )
