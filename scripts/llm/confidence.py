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
    start = answer.text.rindex(json.dumps(chosen))
    allowed = [answer.text[:start] + json.dumps(choice) + answer.text[start + len(json.dumps(chosen)):]
               for choice in choices]
    confidence, written = 1.0, ""
    for token in answer.logprobs:
        possible = [text for text in allowed if text.startswith(written)]
        if len(possible) < 2:
            break
        listed = {other["token"]: other["logprob"] for other in token.get("top_logprobs") or []}
        least = min([*listed.values(), token["logprob"]])
        listed[token["token"]] = token["logprob"]
        fitting = {text: logprob for text, logprob in listed.items()
                   if text and any(whole.startswith(written + text) for whole in possible)}
        seen = {text[0] for text in fitting}
        unseen = {whole[len(written)] for whole in possible if len(whole) > len(written)} - seen
        total = sum(math.exp(logprob) for logprob in fitting.values()) + len(unseen) * math.exp(least)
        if token["token"] in fitting and total > 0:
            confidence *= math.exp(token["logprob"]) / total
        written += token["token"]
    return round(confidence, 4)
