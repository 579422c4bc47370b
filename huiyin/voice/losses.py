"""What a model has learnt: bits per character of real replies that it never saw, before and after the training.

The words and the mark that ends a reply are counted apart: a model learns to stop much sooner than it learns to talk,
and a mean over both would tell of nothing else. Bits per character compare models whatever their tokens are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huiyin.voice.interval import difference_interval, ratio_interval

Losses = Sequence[Mapping[str, Any]]  # of each row {"words": nats of each token, "end": nats of the end mark}


@dataclass(frozen=True)
class Loss:
    """The losses of one model on the rows of one member."""

    words: list[float]  # bits of a row
    ends: list[float]

    @classmethod
    def of(cls, losses: Losses) -> "Loss":
        nats = [(math.fsum(row["words"]), row["end"]) for row in losses]
        return cls([words / math.log(2) for words, _ in nats], [end / math.log(2) for _, end in nats])


def gains(base: list[float], trained: list[float]) -> list[float]:
    """Return by how many bits each row became cheaper."""
    return [before - after for before, after in zip(base, trained, strict=True)]


def measure_gain(base: Loss, trained: Loss, characters: list[int], seed: int) -> dict[str, Any]:
    """Return the bits per character of the words, and the bits of an end mark: of both models, and the gain with its
    paired interval. `characters`: of the reply of each row."""
    ones = [1] * len(characters)

    def both(before: list[float], after: list[float], weights: list[int]) -> dict[str, Any]:
        return {
            "base": ratio_interval(before, weights, seed).as_dict(),
            "trained": ratio_interval(after, weights, seed).as_dict(),
            "gain": ratio_interval(gains(before, after), weights, seed).as_dict(),
        }

    return {
        "replies": len(characters),
        "words": both(base.words, trained.words, characters),
        "end": both(base.ends, trained.ends, ones),
    }


@dataclass(frozen=True)
class Measured:
    """Rows of one member, and what both models make of them."""

    characters: list[int]
    base: Loss
    trained: Loss


def measure_losses(
    own: Measured, others: Mapping[str, Measured], adapters: Mapping[str, Loss], seed: int
) -> dict[str, Any]:
    """Return what the model has gained on the member's rows and on those of `others` {user id: ...}; `own_gain`: the
    first minus the second, words only (None without others); `over_adapter`: by how many bits per character it beats
    the `adapters` {user id: its losses on the member's rows} of other members there."""
    found = measure_gain(own.base, own.trained, own.characters, seed)
    theirs = list(others.values())
    characters = [count for one in theirs for count in one.characters]
    gained = [gain for one in theirs for gain in gains(one.base.words, one.trained.words)]
    on_him = gains(own.base.words, own.trained.words), own.characters
    return {
        **found,
        "others": {user: measure_gain(one.base, one.trained, one.characters, seed) for user, one in others.items()},
        "own_gain": difference_interval(on_him, (gained, characters), seed).as_dict() if characters else None,
        "over_adapter": {
            user: ratio_interval(gains(loss.words, own.trained.words), own.characters, seed).as_dict()
            for user, loss in adapters.items()
        },
    }


def shown(interval: Mapping[str, float]) -> str:
    return "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**interval)


def say(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each number of `measure_losses`."""
    words, end, own = result["words"], result["end"], result["own_gain"]
    lines = [
        f"Words: {words['base']['mean']:.3f} bits a character before, {words['trained']['mean']:.3f} after the "
        f"training, gain {shown(words['gain'])}: {verdict(words['gain'], 'something', 'nothing')} is learnt.",
        f"End of a reply: {end['base']['mean']:.2f} bits before, {end['trained']['mean']:.2f} after: "
        f"{verdict(end['gain'], 'it has learnt', 'it has not learnt')} when to stop.",
    ]
    if own:
        meaning = verdict(own, "it has learnt this member, not only the group", "not shown to be this member's voice")
        lines.append(f"Gain on the member minus gain on {len(result['others'])} others: {shown(own)}: {meaning}.")
    else:
        lines.append(
            "Gain on others: nobody else has replies after the cut, so the voice cannot be told from the group's."
        )
    for user, interval in result["over_adapter"].items():
        meaning = verdict(interval, "it fits the member better", "it does not fit the member better")
        lines.append(f"Against the adapter of {user}, on the member's replies: {shown(interval)}: {meaning}.")
    return lines


def verdict(interval: Mapping[str, float], yes: str, no: str) -> str:
    """Return `yes` if the whole interval is above 0."""
    return yes if interval["low"] > 0 else no
