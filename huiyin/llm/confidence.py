"""How sure the model was of its choice, from the log-probabilities of the tokens that it wrote."""

import json
import math
from typing import Any

from huiyin.llm.backend import Answer


def confidence_of(answer: Answer, choices: list[str] | None) -> float | None:
    """Return the probability (0 to 1) of the choice in `answer.text`, a JSON object with one string from `choices`.

    None if there is nothing to choose, or if the backend reports no log-probabilities. The reported ones are those
    before the schema restricted the model, so at each token they are normalized over the alternatives with which the
    answer can still become one of `choices`.
    """
    if not choices or not answer.logprobs:
        return None
    texts = possible_texts(answer.text, answer.logprobs, choices)
    common = common_length(texts)  # up to here there is nothing to choose
    confidence, written = 1.0, b""
    for token in answer.logprobs:
        if len(written) + len(token_bytes(token)) > common:
            texts = [text for text in texts if text.startswith(written)]
            if len(texts) < 2:
                break
            confidence *= probability_of(token, [text[len(written) :] for text in texts])
        written += token_bytes(token)
    return round(confidence, 4)


def possible_texts(text: str, tokens: list[dict[str, Any]], choices: list[str]) -> list[bytes]:
    """Return all that the `tokens` could have spelled: what they did spell, with each of `choices` as its string."""
    [chosen] = json.loads(text).values()
    before, _, after = text.rpartition(json.dumps(chosen))
    # servers remove a code fence (```json) from the text, but not from the tokens
    fence = b"".join(map(token_bytes, tokens)).partition(text.encode())[0]
    return [fence + (before + json.dumps(choice) + after).encode() for choice in choices]


def common_length(texts: list[bytes]) -> int:
    """Return how many bytes all of `texts` begin with; the least and the greatest have no more in common than all."""
    least, greatest = min(texts), max(texts)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(least))


def probability_of(token: dict[str, Any], continuations: list[bytes]) -> float:
    """Return the probability of `token` among those with which one of `continuations` can begin. A first byte that no
    listed token begins with counts as one more token, as probable as the last one listed."""
    listed = {token_bytes(other): other["logprob"] for other in token.get("top_logprobs") or []}
    least = min([*listed.values(), token["logprob"]])
    listed[token_bytes(token)] = token["logprob"]
    listed.pop(b"", None)
    possible = {key: logprob for key, logprob in listed.items() if any(text.startswith(key) for text in continuations)}
    unlisted = {text[0] for text in continuations if text} - {written[0] for written in possible}
    total = sum(map(math.exp, possible.values())) + len(unlisted) * math.exp(least)
    return math.exp(token["logprob"]) / total if token_bytes(token) in possible and total > 0 else 1.0


def token_bytes(token: dict[str, Any]) -> bytes:
    """Return the bytes of a token; some are a part of a character, and have no text."""
    return bytes(token["bytes"]) if token.get("bytes") is not None else token["token"].encode()
