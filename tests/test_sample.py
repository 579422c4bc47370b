"""The sample: the same seed gives the same messages, and they contain every special case."""

import json
from collections import Counter
from itertools import pairwise

from helpers import run_script
from huiyin.qqnt.cipher import has_header, read_header
from scripts.demo.history import GROUPS, KEY, MEMBERS, TARGET, history

MESSAGES = list(history(1, 1500))


def test_the_seed_decides_every_message():
    assert list(history(1, 1500)) == MESSAGES
    assert list(history(2, 1500)) != MESSAGES
    assert list(history(1, 3000))[:1500] == MESSAGES


def test_every_member_talks_in_both_groups_and_the_target_most():
    counts = Counter((message.group, message.sender) for message in MESSAGES if message.sender)
    assert len(counts) == len(GROUPS) * len(MEMBERS)
    by_target = [message for message in MESSAGES if message.sender is TARGET and not message.dropped]
    assert TARGET.qq == 10002
    assert len(by_target) >= 200
    assert sum(message.quote is not None for message in by_target) >= 10
    assert max(counts.values()) == max(counts[group, TARGET] for group in GROUPS)


def test_ids_and_sequence_numbers_are_like_those_of_qq():
    assert len({message.message_id for message in MESSAGES}) == len(MESSAGES)
    assert all(2**53 < message.message_id < 2**63 for message in MESSAGES)
    for group in GROUPS:
        seqs = [message.seq for message in MESSAGES if message.group is group]
        assert all(later - earlier in (0, 1) for earlier, later in pairwise(seqs))


def test_every_special_case_occurs():
    assert set(Counter(message.dropped for message in MESSAGES)) == {"", "system", "no_time", "no_body", "duplicate"}
    kinds = {part.kind for message in MESSAGES for part in message.parts or ()}
    assert kinds == {"text", "at", "reply", "image", "face", "market_face", "tip", "ark", "file", "voice", "unknown:99"}
    quotes = [message.quote for message in MESSAGES if message.quote]
    assert any(quote.message_id is None for quote in quotes)
    assert any(quote.text == "[图片]" for quote in quotes)
    assert any(message.numberless for message in MESSAGES)


def test_the_files_have_the_format_of_qq(tmp_path):
    done = run_script("demo/history", "--seed", 1, "--messages", 300, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["group_info.db", "key.txt", "nt_msg.db", "profile_info.db", "receipt.json"]
    for name in files[:1] + files[2:4]:
        content = (tmp_path / name).read_bytes()
        assert len(content) % 4096 == 1024
        assert has_header(content)
        assert read_header(content).hmac == b"HMAC_SHA1"
        assert "私聊".encode() not in content
    assert len(KEY) == 16
    assert (tmp_path / "key.txt").read_text() == KEY + "\n"
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["ledger"] == {"read": 300, "written": 300, "dropped": {}}
    assert KEY not in (tmp_path / "receipt.json").read_text()
