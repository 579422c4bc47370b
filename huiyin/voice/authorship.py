"""Who wrote a text? A classifier tells the member from the rest of the group, and says first how well it can."""

from collections.abc import Callable
from typing import Any

import numpy as np

from huiyin.voice.interval import RESAMPLES, SHARE, Interval, ratio_interval
from huiyin.voice.sampling import MOST_CHARACTERS, MOST_LEARNT, MOST_TESTED, Texts, cut, sample, size_class

LEAST_AUC = 0.65  # below, nothing is claimed
LEAST_TEXTS = 10  # of each side, to train and to test; an interval over fewer says nothing
BUCKETS = 2**18  # of hashed n-grams: memory does not grow with the vocabulary
FOLDS = 5
LEAST = 1e-9  # keeps the logarithm finite

Classifier = Callable[[Texts], np.ndarray]


def measure_authorship(
    member: Texts, others: Texts, real: Texts, others_real: Texts, replies: dict[str, Texts], seed: int
) -> dict[str, Any]:
    """How strongly are real and generated replies taken for the member's?

    member, others: turns before the evaluation cut, which the classifier learns from. real, others_real: turns after
    it. replies: of each model, to the prompts of `real`. At most 10,000
    turns of a side are learnt from and 2,000 tested, drawn at random, and 300 characters of each (`sampling.sample`).

    Lengths are matched by weights, in training and in the AUC: in each class of lengths (`size_class`) the texts of
    both sides weigh as much as there are of the rarer side. So the length itself says nothing, and the log odds are
    those of two authors who are equally likely beforehand: the threshold is even odds, log odds of 0.

    Returns `usable`, `auc` (of real against others_real, with its interval; None with fewer than 10 texts on a side or
    no length in common), `texts` (how many of each) and, only if the AUC is at least 0.65 and its interval above 0.5,
    for `real`, `others` and each of `replies` the `log_odds` (mean, natural logarithm) and the `share` over the
    threshold, with intervals over texts; None without texts. An empty reply is never over the threshold.
    """
    member, others = (sample(side, MOST_LEARNT, seed) for side in (member, others))
    tested = {"real": sample(real, MOST_TESTED, seed), "others": sample(others_real, MOST_TESTED, seed)}
    texts = {"member": len(member), "others": len(others), "member_tested": len(tested["real"])}
    texts["others_tested"] = len(tested["others"])
    unusable = {"usable": False, "auc": None, "texts": texts}
    if min(texts.values()) < LEAST_TEXTS:
        return unusable
    weights, tested_weights = matched_weights(member, others), matched_weights(tested["real"], tested["others"])
    if not weights[0].any() or not tested_weights[0].any():
        return unusable
    log_odds = train_classifier(member, others, weights)
    odds = {name: log_odds(of_one) for name, of_one in tested.items()}
    auc = auc_interval(odds["real"], odds["others"], *tested_weights, seed)
    if auc.mean < LEAST_AUC or auc.low <= 0.5:
        return {**unusable, "auc": auc.as_dict()}
    result = {"usable": True, "auc": auc.as_dict(), "texts": texts}
    for name, of_one in {**tested, **replies}.items():
        result[name] = summary(log_odds(cut(of_one)), of_one, seed) if of_one else None
    return result


def matched_weights(first: Texts, second: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Return weights with which the lengths of both sides are distributed alike, of as many texts as both have."""
    classes = [np.array([size_class(len(text)) for text in texts], int) for texts in (first, second)]
    counts = [np.bincount(of_one, minlength=MOST_CHARACTERS) for of_one in classes]
    weights = [np.minimum(*counts) / np.maximum(count, 1) for count in counts]
    return weights[0][classes[0]], weights[1][classes[1]]


def train_classifier(member: Texts, others: Texts, weights: tuple[np.ndarray, np.ndarray]) -> Classifier:
    """Return a function from texts to the log odds that the member wrote them: [text].

    Log odds of texts that were learnt from are too sure, so they are calibrated (Platt 1999) by cross-validation.
    """
    from scipy.special import logit
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    ngrams = HashingVectorizer(
        analyzer="char", ngram_range=(1, 4), lowercase=False, n_features=BUCKETS, alternate_sign=False, norm=None
    )
    counts = ngrams.transform([*others, *member])
    used = np.unique(counts.indices)
    tf_idf = TfidfTransformer(sublinear_tf=True)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = CalibratedClassifierCV(LogisticRegression(max_iter=1000), cv=folds, ensemble=False)
    labels = np.repeat([0, 1], [len(others), len(member)])
    model.fit(tf_idf.fit_transform(counts[:, used]), labels, sample_weight=np.concatenate(weights[::-1]))

    def log_odds(texts: Texts) -> np.ndarray:
        chances = model.predict_proba(tf_idf.transform(ngrams.transform(texts)[:, used]))
        return logit(np.clip(chances[:, 1], LEAST, 1 - LEAST))

    return log_odds


def auc_interval(
    first: np.ndarray, second: np.ndarray, first_weights: np.ndarray, second_weights: np.ndarray, seed: int
) -> Interval:
    """Return the weighted area under the ROC curve (how often a score of `first` is above one of `second`, ties count
    half) with its percentile bootstrap interval, for which both sides are drawn anew. At least one weight of each side
    is above 0."""
    above = ((first[:, None] > second) + 0.5 * (first[:, None] == second)).astype(np.float32)
    random = np.random.default_rng(seed)
    drawn = [
        random.multinomial(len(weights), np.full(len(weights), 1 / len(weights)), RESAMPLES) * weights
        for weights in (first_weights, second_weights)
    ]
    totals = drawn[0].sum(1) * drawn[1].sum(1)
    sums = ((drawn[0].astype(np.float32) @ above) * drawn[1]).sum(1)
    low, high = np.quantile(sums[totals > 0] / totals[totals > 0], [(1 - SHARE) / 2, (1 + SHARE) / 2])
    mean = (first_weights @ above @ second_weights) / (first_weights.sum() * second_weights.sum())
    return Interval(float(mean), float(low), float(high))


def summary(log_odds: np.ndarray, texts: Texts, seed: int) -> dict[str, dict[str, float]]:
    over = [float(odds > 0 and bool(text.strip())) for odds, text in zip(log_odds, texts, strict=True)]
    ones = [1.0] * len(texts)
    return {
        "log_odds": ratio_interval(log_odds.tolist(), ones, seed).as_dict(),
        "share": ratio_interval(over, ones, seed).as_dict(),
    }


def say(result: dict[str, Any]) -> str:
    """Return one sentence about what `measure_authorship` has found."""
    if result["auc"] is None:
        return "Authorship: too few texts to learn who wrote a text; nothing is claimed."
    auc = "AUC {mean:.2f} [{low:.2f}, {high:.2f}]".format(**result["auc"])
    if not result["usable"]:
        return f"Authorship: the classifier cannot tell this member from the others ({auc}); nothing is claimed."
    taken = {name: result[name] and f"{result[name]['share']['mean']:.0%}" for name in ("real", "trained", "base")}
    return (
        f"Authorship ({auc}): taken for the member's are {taken['real']} of the real replies, "
        f"{taken['trained'] or 'none'} of the trained model's, {taken['base'] or 'none'} of the base model's."
    )
