"""The page of everything: what `report.html` shows, made of the facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from huiyin.common.stage import STAGES
from huiyin.report import charts, words
from huiyin.report.blind import Played
from huiyin.report.facts import Facts, by_month, examples, lengths, predicted_and_seen
from huiyin.report.page import render, say, shown
from huiyin.report.words import words as words_for

TURNS = "turns.parquet"
REST = "c7"  # the colour of all others
NUMBERS = {  # of voice.json that stand side by side: (how they are shown, where they are)
    "own_gain": ("interval", "losses own_gain"),
    "gain": ("interval", "losses words gain"),
    "taken": ("share", "authorship trained share mean"),
    "ended": ("share", "ended trained"),
    "copied": ("share", "copies trained word_for_word"),
    "held_out": ("count", "held_out"),
}


def report(facts: Facts, played: Played, shared: bool, texts: bool, links: Mapping[str, str]) -> str:
    """Return the page. shared: for others, without what only the owner may see; texts: with messages and names; links:
    {user id: address of the page of that member}."""
    name = facts.shown_name if texts or not shared else ""
    return render(
        "report.html",
        facts=facts,
        shared=shared,
        texts=texts or not shared,
        name=name,
        name_of=Markup("<bdi>{}</bdi>").format(shown(name, 40)) if name else say("the member", "此人"),
        group_words=group_words(facts.group),
        gain=gain(facts.voice),
        authorship=authorship(facts.voice),
        versions_compared=compared(facts),
        others=[] if shared else [(shown(facts.others[user], 24), link) for user, link in links.items()],
        blind=played,
        bar=charts.bar,
        funnel=[funnel(stage, facts.receipts[stage]) for stage in [*STAGES, "voice"] if stage in facts.receipts],
        not_done=[
            stage
            for stage in STAGES
            if stage not in facts.receipts and (stage != "decrypt" or len(facts.receipts) == 0)
        ],
        group_chart=group_chart(facts.group),
        speakers=speakers(facts.group, texts or not shared),
        pairing=pairing(facts.receipts.get("pair", {})),
        examples=[*examples(facts.pairs), *examples(facts.unpaired, 2)],
        ways=lambda way: words_for(words.WAYS, way),
        reasons=lambda reason: words_for(words.REASONS, reason),
        dataset=dataset(facts),
        training=training(facts),
        habits=habits(facts.voice.get("habits", {})),
        copies=copies(facts.voice.get("copies", {})),
        made=[made(stage, receipt) for stage, receipt in facts.receipts.items()],
        versions=sorted({pair for receipt in facts.receipts.values() for pair in receipt.get("versions", {}).items()}),
    )


def group_words(group: Mapping[str, Any]) -> dict[str, Any]:
    if not group:
        return {}
    days = {name: f"{group[name]:%Y-%m-%d}" for name in ("first", "last")}
    return {"messages": group["messages"], "people": group["people"], **days}


def gain(voice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first number: the gain on the member minus that on the others."""
    value = voice.get("losses", {}).get("own_gain")
    if not value:
        return {}
    if value["low"] > 0:
        sentence = say("It has learnt this person, not only the group.", "它学到的是这个人，而不只是这个群。")
    elif value["high"] < 0:
        sentence = say("It has learnt the group more than this person.", "它学到的更多是这个群，而不是这个人。")
    else:
        sentence = say(
            "Whether it has learnt this person or only the group cannot be told yet.",
            "还看不出它学到的是这个人，还是只是这个群。",
        )
    chart = charts.interval(value["low"], value["mean"], value["high"], "gain")
    sure = value["low"] > 0 or value["high"] < 0
    return {"shown": f"{value['mean']:+.3f}", "sure": sure, "sentence": sentence, "chart": chart}


def authorship(voice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the second number: how many replies of the model a classifier takes for the member's."""
    found = voice.get("authorship")
    if not found:
        return {}
    if not found["usable"]:
        sentence = say(
            "A classifier cannot tell this member's texts from those of others, so it says nothing of the model.",
            "分类器分不清此人与别人的文字，所以对模型不作判断。",
        )
        return {"shown": "–", "usable": False, "sentence": sentence, "bars": [], "auc": found["auc"]["mean"]}
    shares = {name: found[name]["share"]["mean"] for name in ("real", "trained", "base", "others")}
    labels = {
        "real": (say("real replies", "真实回复"), "c5"),
        "trained": (say("the model", "模型"), "c0"),
        "base": (say("before its training", "训练前"), "c7"),
        "others": (say("other people", "其他人"), "c4"),
    }
    sentence = say(
        "A classifier takes {trained} of 100 replies of the model for this member's, and {real} of 100 real ones.",
        "分类器把模型 100 条回复中的 {trained} 条当成此人说的；真实回复则是 {real} 条。",
        **{name: f"{100 * share:.0f}" for name, share in shares.items()},
    )
    bars = [(*labels[name][:1], share, labels[name][1]) for name, share in shares.items()]
    return {
        "shown": f"{100 * shares['trained']:.0f} %",
        "usable": True,
        "sentence": sentence,
        "bars": bars,
        "auc": found["auc"]["mean"],
    }


def compared(facts: Facts) -> dict[str, Any]:
    """Return the numbers of this version and of the one before: {days, rows: [(label, now, before), ...]}."""
    if not facts.previous:
        return {}
    both = facts.voice, facts.previous
    days = [str(one.get("made_at", ""))[:10] for one in (facts.receipts["voice"], facts.previous)]
    shown_as = {"interval": "{mean:+.3f} [{low:+.3f}, {high:+.3f}]", "share": "{:.0%}", "count": "{:,}"}

    def text(kind: str, value: Any) -> str:
        if value is None:
            return "–"
        return shown_as[kind].format(**value) if kind == "interval" else shown_as[kind].format(value)

    rows = [
        (words_for(words.NUMBERS, name), *(text(kind, found_in(one, path)) for one in both))
        for name, (kind, path) in NUMBERS.items()
    ]
    return {"days": days, "rows": rows}


def found_in(voice: Mapping[str, Any], path: str) -> Any:
    """Return what stands at `path`, names with blanks between, of what voice has measured; None if nothing does."""
    value: Any = voice
    for name in path.split():
        value = value.get(name) if isinstance(value, dict) else None
    return value


def funnel(stage: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
    ledger, whole = receipt["ledger"], max(receipt["ledger"]["read"], 1)
    dropped = {reason: count for reason, count in ledger["dropped"].items() if count}
    numbers = [("c0", ledger["written"]), ("c1", ledger.get("merged", 0)), ("c2", sum(dropped.values()))]
    by_number = sorted(dropped.items(), key=lambda item: -item[1])
    return {
        **{"name": stage, "label": words_for(words.STAGES, stage)},
        **{"read": ledger["read"], "written": ledger["written"]},
        "parts": [(colour, number / whole) for colour, number in numbers],
        "dropped": [(words_for(words.REASONS, reason), count) for reason, count in by_number],
    }


def colours(group: Mapping[str, Any]) -> list[str]:
    """Return a colour for each speaker: the member's is always the first, that of the others the last."""
    rest = iter(f"c{number}" for number in range(1, 7))
    return ["c0" if one["is_member"] else next(rest, REST) if one["name"] else REST for one in group["speakers"]]


def group_chart(group: Mapping[str, Any]) -> Markup:
    if not group:
        return Markup("")
    style = {"1d": "%m-%d", "1mo": "%Y-%m", "1y": "%Y"}[group["unit"]]
    labels = [time.strftime(style) for time in group["times"]]
    series = [(colour, one["counts"]) for colour, one in zip(colours(group), group["speakers"], strict=True)]
    return charts.columns(labels, series, "messages", 190)


def speakers(group: Mapping[str, Any], names: bool) -> list[dict[str, Any]]:
    if not group:
        return []
    most = max(one["total"] for one in group["speakers"])
    found = []
    for index, (one, colour) in enumerate(zip(group["speakers"], colours(group), strict=True), 1):
        other = say("all others", "其他所有人") if not one["name"] else shown(one["name"], 24) if names else f"#{index}"
        label = say("the member", "此人") if one["is_member"] and not names else other
        found.append({**one, "label": label, "colour": colour, "most": most})
    return found


def pairing(receipt: Mapping[str, Any]) -> dict[str, Any]:
    if not receipt:
        return {}
    unpaired = sum(receipt.get("unpaired", {}).values())
    counts = {
        **dict(Counter(receipt.get("decided_by", {})).most_common()),
        **({"unpaired": unpaired} if unpaired else {}),
    }
    quotes = receipt.get("quotes", {})
    kinds = {"found_by_linker": "linker", "found_by_llm": "llm", "found_by_rule": "rule"}
    return {
        "all": max(sum(counts.values()), 1),
        "ways": [(words_for(words.WAYS, way), count) for way, count in counts.items()],
        "quotes": quotes if quotes.get("in_reach") else {},
        "found": [(words_for(words.WAYS, way), quotes[name]) for name, way in kinds.items() if name in quotes],
    }


def dataset(facts: Facts) -> dict[str, Any]:
    rows = [*facts.rows, *facts.held_out]
    bins, middle = lengths(str(row.get("output", "")) for row in rows)
    months, counts = by_month([*facts.pairs, *facts.unpaired])
    return {
        "median": middle,
        "lengths": charts.columns([label for label, _ in bins], [("c0", [count for _, count in bins])], "characters"),
        "months": charts.columns(months, [("c3", counts)], "months") if len(months) > 1 else "",
    }


def training(facts: Facts) -> dict[str, Any]:
    if "train" not in facts.receipts:
        return {}
    receipt = facts.receipts["train"]
    found = predicted_and_seen(receipt, facts.log)
    steps = max((line["current_steps"] for line in facts.log), default=0)
    losses = [(line["current_steps"], line["loss"]) for line in facts.log if "loss" in line]
    results = receipt.get("results", {})
    held_out = [(line["current_steps"], line["eval_loss"]) for line in facts.log if "eval_loss" in line]
    if not held_out and "base_eval_loss" in results:
        held_out = [(0, results["base_eval_loss"]), (steps, results["eval_loss"])]
    plan = found["plan"]
    rows = plan.get("micro_batch", 0) * plan.get("accumulation", 0)
    return {
        **found,
        "chart": charts.curves([("c0", losses), *([("c2", held_out)] if held_out else [])], "loss"),
        "eval": bool(held_out),
        "base": Path(receipt.get("base_model", {}).get("name", "")).name,
        "steps": f"{steps:,}, {rows}",
        "precision": plan.get("precision", "") + (", 4 bit" if plan.get("four_bit") else ""),
    }


def habits(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the habits of which there is anything, those of the largest distance last."""
    used = {name: one for name, one in found.items() if any(one[who] for who in ("real", "trained", "base"))}
    return [
        {
            "label": words_for(words.HABITS, name),
            "chart": charts.distances(
                one["distance_of_halves"], [("c7", one["distance_base"]), ("c0", one["distance_trained"])], name
            ),
            "figures": " · ".join(f"{one[who]:.3g}" for who in ("real", "trained", "base")),
        }
        for name, one in sorted(used.items(), key=lambda item: item[1]["distance_trained"])
    ]


def copies(found: Mapping[str, Any]) -> list[tuple[Markup, list[float]]]:
    who = [name for name in ("real", "trained", "base") if name in found]
    return [(words_for(words.COPIES, kind), [found[name][kind] for name in who]) for kind in words.COPIES if who]


def made(stage: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
    # the files of groups have their ids in their names
    files = {
        name: digest for name, digest in receipt["outputs"].items() if name == TURNS or not name.startswith("turns.")
    }
    outputs = [(name, digest[:12]) for name, digest in files.items() if isinstance(digest, str)]
    at = str(receipt.get("made_at", ""))[:16].replace("T", " ")
    return {"label": stage, "at": at, "seconds": receipt["seconds"], "outputs": outputs[:6]}
