"""Contract section 3 once more, message by message over pandas rows: slow, plain, and sharing nothing with combine.

The tests hold combine to it on random histories, and bench/combine.py counts how much faster combine is.
"""

import re
import unicodedata

import pandas as pd


def plain_turns(
    messages,
    special_texts,
    *,
    merge="rule",
    max_gap_seconds=60,
    max_others_between=2,
    quotes_start_a_turn=False,
    invisible_is_empty=False,
    placeholders=(),
):
    """Return (turns as dicts, ledger as a dict) of a pandas frame with the columns of messages.parquet."""
    messages = messages.assign(no_seq=messages["seq"].isna()).sort_values(
        ["group_id", "time", "no_seq", "seq", "message_id"], ascending=[True, True, False, True, True], kind="stable"
    )
    turns, dropped = [], {"empty": 0}
    for _, group in messages.groupby("group_id", sort=True):
        names = {row["nickname"]: row["user_id"] for _, row in group.iterrows() if pd.isna(row["seq"])}
        names |= {"全体成员": "all", "所有人": "all"}
        longest_first = sorted((name for name in names if name.strip()), key=len, reverse=True)
        with_text = []
        for _, row in group.iterrows():
            told = what_it_says(row, longest_first, names, special_texts, placeholders, invisible_is_empty)
            text, mentions, special = told
            if text:
                with_text.append({"row": row, "text": text, "mentions": mentions})
            else:
                dropped[special or "empty"] = dropped.get(special or "empty", 0) + 1
        bursts = []
        for index, message in enumerate(with_text):
            burst = None
            if merge == "rule" and not (quotes_start_a_turn and quotes(message["row"])):
                burst = burst_to_join(with_text, index, max_gap_seconds, max_others_between)
            if burst is None:
                burst = {"index": index, "messages": []}
                bursts.append(burst)
            burst["messages"].append(message)
            message["burst"] = burst
        turns += sorted((turn_of(burst) for burst in bursts), key=lambda turn: (turn["time"], turn["index"]))
    number(turns)
    written, empty = len(turns), sum(dropped.values())
    return turns, {
        "read": len(messages),
        "written": written,
        "merged": len(messages) - empty - written,
        "dropped": dict(sorted(dropped.items())),
    }


def burst_to_join(with_text, index, max_gap_seconds, max_others_between):
    """The burst of the user's last message before `index`, if this one still belongs to it."""
    row = with_text[index]["row"]
    if row["user_id"] in ("", "80000000"):
        return None
    for earlier in reversed(with_text[max(index - max_others_between - 1, 0) : index]):
        if earlier["row"]["user_id"] == row["user_id"]:
            soon = row["time"] - earlier["row"]["time"] < pd.Timedelta(seconds=max_gap_seconds)
            return earlier["burst"] if soon else None
    return None


def what_it_says(row, longest_first, names, special_texts, placeholders, invisible_is_empty):
    """Return a message's text, whom it mentions, and the first special text in it."""
    with_fragment = [kind for kind in row["kinds"] if kind in ("text", "at", "face", *placeholders)]
    if len(with_fragment) > len(row["fragments"]):  # then none of its faces has a name
        with_fragment = [kind for kind in with_fragment if kind != "face"]
    kept, mentions, special = [], list(row["mentions"]), None
    for kind, text in zip(with_fragment, row["fragments"], strict=True):
        if kind == "at":
            continue
        text = text.strip()
        if kind == "face":
            kept.append(text)
            continue
        if pd.isna(row["seq"]):
            text = without_typed_mentions(text, longest_first, names, mentions).strip()
        found = [entry for entry in special_texts if entry in text and (in_brackets(entry) or is_notice(text, entry))]
        special = special or (found[0] if found else None)
        brackets = sorted(filter(in_brackets, special_texts), key=len, reverse=True)
        if brackets:
            text = re.sub("|".join(map(re.escape, brackets)), "", text).strip()
        if invisible_is_empty and shows_nothing(text):
            continue
        if text and not any(is_notice(text, entry) for entry in special_texts if not in_brackets(entry)):
            kept.append(text)
    text = "，".join(kept)
    if special:
        while (shorter := re.sub(r"，\s*，", "，", text)) != text:
            text = shorter
        while text != (text := text.strip().removeprefix("，").removesuffix("，")):
            pass
        if invisible_is_empty and shows_nothing(text):
            text = ""
    return text, list(dict.fromkeys(mentions)), special


def shows_nothing(text):
    return all(
        unicodedata.category(character) in ("Cc", "Cf", "Mn", "Zs") or character in "\u3164\u2800" for character in text
    )


def in_brackets(entry):
    return entry[0] == "[" and entry[-1] == "]"


def is_notice(text, entry):
    return re.fullmatch(r"(\[[^\[\]]*\])?" + re.escape(entry) + "。?", text) is not None


def without_typed_mentions(text, longest_first, names, mentions):
    if text.lower() == "@all" and text[1:] not in names:
        mentions.append("all")
        return ""
    index = 0
    while index < len(text):
        if text[index] == "@" and not (in_word(text[:index][-1:]) and in_word(text[index + 1 :][:1])):
            for name in longest_first:
                rest = text[index + 1 + len(name) :]
                if text[index + 1 :].startswith(name) and (not rest or rest[0].isspace()):
                    mentions += [names[name]] if names[name] else []
                    text = text[:index] + rest
                    index -= 1
                    break
        index += 1
    return text


def in_word(character):
    return character.isascii() and character.isalnum()


def quotes(row):
    return row["reply_dangling"] or not pd.isna(row["reply_to"])


def turn_of(burst):
    rows = [message["row"] for message in burst["messages"]]
    milliseconds = [row["time"].value // 1_000_000 for row in rows]
    return {
        "index": burst["index"],
        "group_id": rows[0]["group_id"],
        "user_id": rows[0]["user_id"],
        "nickname": rows[-1]["nickname"],
        "time": sum(milliseconds) // len(milliseconds),
        "first_time": milliseconds[0],
        "last_time": milliseconds[-1],
        "text": "，".join(message["text"] for message in burst["messages"]),
        "texts": [message["text"] for message in burst["messages"]],
        "times": milliseconds,
        "mentioned": [message["mentions"] for message in burst["messages"]],
        "message_ids": [int(row["message_id"]) for row in rows],
        "mentions": list(dict.fromkeys(user for message in burst["messages"] for user in message["mentions"])),
        "quoted": [None if row["reply_dangling"] else int(row["reply_to"]) for row in rows if quotes(row)],
    }


def number(turns):
    """Give the turns, which are in order, their numbers, the turns they quote, and the seconds between them."""
    turn_of_message = {message: index for index, turn in enumerate(turns) for message in turn["message_ids"]}
    for index, turn in enumerate(turns):
        turn["turn_id"] = index
        before = turns[index - 1] if index and turns[index - 1]["group_id"] == turn["group_id"] else turn
        turn["seconds_since_previous"] = (turn["time"] - before["time"]) // 1000
        quoted = [turn_of_message.get(message) for message in turn.pop("quoted")]
        turn["quotes_outside"] = None in quoted
        turn["reply_to_turn"] = quoted[0] if quoted and quoted[0] != index else None
        del turn["index"]
