"""How sure was the model of the choice it made? From the log-probabilities of the tokens it wrote."""

import json
import math


def confidence_of(answer, choices):
    """Return the share of probability (0 to 1) of the choice in `answer.text`, a JSON object with one string.

    None where the backend gives no log-probabilities. Those are the model's before the schema bound it, so at each
    token only the alternatives count with which the answer can still become one of `choices`; one the model does
    not list counts as likely as the last on the list.
    """
    if not choices or not answer.logprobs:
        return None
    [chosen] = json.loads(answer.text).values()
    before, _, after = answer.text.rpartition(json.dumps(chosen))
    # servers take a fence (```json) off the answer, but not off the tokens
    frame = b"".join(map(spelling, answer.logprobs)).partition(answer.text.encode())[0]
    allowed = [frame + (before + json.dumps(choice) + after).encode() for choice in choices]
    confidence, written = 1.0, b""
    pairs = enumerate(zip(min(allowed), max(allowed), strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), 0)
    for token in answer.logprobs:
        if len(written) + len(spelling(token)) <= shared:  # nothing to choose yet
            written += spelling(token)
            continue
        possible = [whole for whole in allowed if whole.startswith(written)]
        if len(possible) < 2:
            break
        listed = {spelling(other): other["logprob"] for other in token.get("top_logprobs") or []}
        least = min([*listed.values(), token["logprob"]])
        listed[spelling(token)] = token["logprob"]
        fitting = {
            text: logprob
            for text, logprob in listed.items()
            if text and any(whole.startswith(written + text) for whole in possible)
        }
        next_bytes = {whole[len(written)] for whole in possible if len(whole) > len(written)}
        unlisted = next_bytes - {text[0] for text in fitting}
        total = sum(map(math.exp, fitting.values())) + len(unlisted) * math.exp(least)
        if spelling(token) in fitting and total > 0:
            confidence *= math.exp(token["logprob"]) / total
        written += spelling(token)
    return round(confidence, 4)


def spelling(token):
    """The bytes of a token; as text some have none, being parts of a character."""
    return bytes(token["bytes"]) if token.get("bytes") is not None else token["token"].encode()
