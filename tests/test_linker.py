"""The linker: when it may decide alone, and what it makes of odd histories."""

import json
import re

import numpy as np
import pytest

from linking.blind import threshold_earned
from linking.features import NAMES, WIDTH, Talk, features
from linking.linker import decisions
from llm_folder import prompt_of, succeeded
from test_cases import cases, compare, ledger_of, read_lines, turns


@cases("pair_with_a_model")
def test_pair_with_a_model(case, folder):
    """answers.json: {reply: what the model answers}; of quotes asked blind it says none."""
    turns(read_lines(case / "turns.jsonl")).write_parquet(folder.path / "turns.parquet")
    answers = json.loads((case / "answers.json").read_text(encoding="utf-8"))

    def answer(k, body):
        return json.dumps({"answers": next((number for reply, number in answers.items()
                                            if f"<发言>\n名me：{reply}\n" in prompt_of(body)), "none")})

    folder.ollama.before_chat = answer
    folder.settings("pair", (case / "pair.yaml").read_text(encoding="utf-8"))
    done = succeeded(folder.pair())
    said = [line for line in done.stdout.splitlines() if "quotes" in line]
    linker = json.dumps(folder.json("paired/receipt.json")["linker"], indent=1) + "\n"
    lines = {name: (folder.path / "paired" / name).read_text(encoding="utf-8")
             for name in ("pairs.jsonl", "unpaired.jsonl")}
    # how sure the tiny model is of an answer it was given says nothing
    lines["pairs.jsonl"] = re.sub(r'("llm", "confidence": )[^,]+', r"\1null", lines["pairs.jsonl"])
    compare(case, {"ledger.json": ledger_of(folder.path / "paired"), "linker.json": linker, **lines,
                   "said.txt": "\n".join(said) + "\n"})


def test_what_a_blind_quote_mentions_is_not_seen():
    """Neither itself nor in the habits of its author; its share of all namings in the group is no habit of his."""
    users, times = list("abcabcabca"), np.arange(10) * 7.0
    named = [["b"], [], ["a"], [], ["c"], [], ["b"], [], ["a"], []]
    texts = [f"turn {place % 4}" for place in range(10)]
    blind = named.copy()
    blind[8] = []
    seen = Talk(users, times, times, texts, named, [0] * 10)
    rows, *_ = features(seen, [8], False, named=seen.coded([[]], ["c"]))
    expected, *_ = features(Talk(users, times, times, texts, blind, [0] * 10), [8], False)
    columns = [place for place, name in enumerate(NAMES) if name != "naming_in_group"]
    np.testing.assert_array_equal(rows[:, columns], expected[:, columns])


def test_features_are_those_of_each_turn_alone():
    """Whatever else is asked about at the same time; but what words are rare depends on all texts there are."""
    generator = np.random.default_rng(1)
    users = [str(number) for number in generator.integers(0, 5, 60)]
    talk = Talk(users, np.arange(60.0) * 7 + 0.5, np.arange(60.0) * 7 + 0.5, ["same"] * 60,
                [[str(number)] if number < 3 else [] for number in generator.integers(0, 9, 60)], range(60))
    rows, sizes, candidates = features(talk, range(60), False)
    assert sizes.tolist() == [1 + sum(user != users[place] for user in users[max(0, place - WIDTH):place])
                              for place in range(60)]
    for place in (0, 1, 7, 30, 59):
        start = sizes[:place].sum()
        alone = features(talk, [place], False)
        np.testing.assert_allclose(rows[start:start + sizes[place]], alone[0], rtol=1e-5)
        assert candidates[start:start + sizes[place]].tolist() == alone[2].tolist()


def test_candidates_are_turns_of_others_and_what_is_further_back_counts_as_none():
    talk = Talk(list("abcbd"), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], ["x"] * 5, [[]] * 5, [0] * 5)
    rows, sizes, candidates = features(talk, [2, 3, 4], False)  # of c, b and d
    assert candidates.tolist() == [1, 0, -1, 2, 0, -1, 3, 2, 1, 0, -1]
    shares = np.array([0.5, 0.3, 0.2, 0.3, 0.6, 0.1, 0.3, 0.3, 0.25, 0.05, 0.1])
    for most, places, sure in ((10, [1, 0, 3], [0.5, 0.6, 0.3]), (1, [-1, -1, -1], [0.5, 0.7, 0.7])):
        found = decisions(rows, sizes, candidates, shares, most)
        assert (found[0].tolist(), found[1].tolist()) == (places, pytest.approx(sure))
    assert features(talk, [2, 3, 4], True)[2].tolist() == [1, 0, -1, 2, -1, 3, 2, 1, 0, -1]


@pytest.mark.parametrize(("tried", "threshold", "reason"), [
    ([(0.9, True)] * 49, None, "nothing alone: 49 quotes to test it on, 50 are needed"),
    ([(0.9, True)] * 45 + [(0.9, False)] * 5, 0.8,
     "alone from 0.8 on: there it decides 50 of 50 quotes asked blind, 90% of them rightly"),
    ([(0.95, True)] * 30 + [(0.85, False)] * 30, 0.86,
     "alone from 0.86 on: there it decides 30 of 60 quotes asked blind, 100% of them rightly"),
    ([(0.95, True)] * 19 + [(0.9, False)] * 31, None,
     "nothing alone: of 50 quotes asked blind it is surest of 50, and there right in 38%"),
    ([(0.79, True)] * 60, None,
     "nothing alone: of 60 quotes asked blind it is sure (from 0.8 on) of fewer than 20"),
])
def test_the_threshold_is_raised_until_nine_in_ten_are_right(tried, threshold, reason):
    earned, why = threshold_earned(tried, 0.8)
    assert (earned["threshold"], earned["quotes"], why) == (threshold, len(tried), reason)
