"""The page of everything: what is on it, for whom, and that a hostile history cannot break it."""

import json
import re
import stat

import pytest

from reported import NAMES, VOICE, Reported

HOSTILE = [
    "<script>document.title = 'broken'</script>",
    '"""\'"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "长" * 10_000,
    "\u202eنص من اليمين",
    "a\0b\x1b[31mc\ud7ff\u2066",
]


@pytest.fixture
def reported(tmp_path):
    return Reported(tmp_path)


def test_the_page_has_each_part_and_only_its_owner_can_read_it(reported):
    reported.write_all()
    page = reported.report()
    for words in ("+0.120", "65 %", "小梅", "吃了吗", "面条", "阿宝", "好的", "引用", "make blind"):
        assert words in page, words
    assert page.count('<svg class="chart"') == 6  # gain, group, lengths, loss, two habits
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (reported.folder / "report").iterdir()}
    assert modes == {"index.html": 0o600}


def test_what_is_not_there_yet_is_left_out_and_its_target_is_named(reported):
    page = reported.report()
    for target in ("parse", "pair", "gen", "train", "voice", "blind"):
        assert f"make {target}</code>" in page


def test_somebody_who_is_not_there_is_one_line(reported):
    reported.write_messages([{"time": 0, "user_id": "2", "fragments": ["在"]}])
    assert reported.run().stderr.strip() == (
        "report.py: nobody with the id 1 has written anything here; `make members` lists who is there"
    )


def test_a_page_to_share_has_no_words_and_names_without_consent(reported):
    reported.write_all(words="我们的秘密")
    assert "我们的秘密" in reported.report()
    shared = reported.report(share="yes")
    assert not [words for words in ("我们的秘密", "吃了吗", "654321", *NAMES.values()) if words in shared]
    assert "+0.120" in shared
    agreed = reported.report(share="yes", consent="yes")
    assert "我们的秘密" in agreed and "小梅" in agreed


@pytest.mark.parametrize("words", HOSTILE)
def test_a_hostile_history_breaks_no_page(reported, words):
    calm = Reported(reported.folder / "calm")
    calm.folder.mkdir()
    calm.write_all()
    reported.write_all(words)
    page = reported.report()
    tags = [re.findall(r"<(?!/?rect|/?text|/?title|line)[a-z/!][^<>\s]*", text) for text in (page, calm.report())]
    assert tags[0] == tags[1]  # but for the charts of lengths
    assert len(page) < 200_000
    assert not re.search("[\0\x1b\u202e\u2066]", page)


def test_two_hundred_members_are_seven_and_all_others(reported):
    people = [{"time": 60 * number, "user_id": str(number % 200), "fragments": ["在"]} for number in range(1_000)]
    reported.write_messages(people)
    page = reported.report()
    assert "1,000 messages of 200 people" in page
    assert "all others" in page and ">965<" in page


def test_the_pages_of_other_members_are_linked_for_the_owner_alone(reported, tmp_path):
    reported.write_all()
    pages = [tmp_path / member / "report/index.html" for member in ("2", "n-9")]
    page = reported.report(pages=[*pages, reported.folder / "report/index.html"])
    links = re.findall(r'<a href="([^"]*)"><bdi>(.*?)</bdi></a>', page)
    assert links == [("../2/report/index.html", "阿宝"), ("../n-9/report/index.html", "n-9")]
    assert "../2/report" not in reported.report(share="yes", consent="yes", pages=pages)


def test_both_versions_stand_side_by_side(reported):
    reported.write_all()
    assert "This version" not in reported.report()
    path = reported.folder / "voice"
    before = VOICE | {"held_out": 1234, "made_at": "2026-04-03T00:00:00+0000", "ended": {"trained": 0.5}}
    before |= {"losses": {"own_gain": {"mean": -0.01, "low": -0.1, "high": 0.08}}}
    (path / "previous.json").write_text(json.dumps(before))
    receipt = json.loads((path / "receipt.json").read_text())
    receipt["outputs"]["previous.json"] = "a" * 64
    (path / "receipt.json").write_text(json.dumps(receipt))
    page = reported.report(share="yes")
    cells = re.findall(r'<td class="number">([^<]*)</td><td class="number">([^<]*)</td></tr>', page)
    gain = "+0.120 [+0.040, +0.200]", "-0.010 [-0.100, +0.080]"
    assert cells[:6] == [gain, ("–", "–"), ("65%", "65%"), ("–", "50%"), ("1%", "1%"), ("40", "1,234")]
    assert "2026-05-04</th>" in page and "2026-04-03</th>" in page


def test_damaged_results_are_one_line(reported):
    reported.write_all()
    path = reported.folder / "voice/voice.json"
    path.write_text("[]")
    done = reported.run()
    assert done.stderr.strip() == (
        f"report.py: {path}: cannot be read; delete {path.parent}/receipt.json, then `make voice` makes it"
    )
    assert done.returncode == 1 and not (reported.folder / "report").exists()


def test_results_of_an_earlier_version_are_one_line(reported):
    reported.write_all()
    path = reported.folder / "voice/voice.json"
    voice = json.loads(path.read_text())
    path.write_text(json.dumps({**voice, "authorship": {"usable": True}, "drawn_out": 1}))
    assert reported.run().stderr.strip() == (
        "report.py: the results are not as they are written now (KeyError); make verify tells which have been changed, "
        "make voice measures anew"
    )


def test_codes_of_friends_are_counted_once_each(reported):
    from huiyin.report.blind import check

    def code(page, player, answers):
        text = f"{page}-{player}-{answers}"
        return f"{text}-{check(text)}"

    reported.write_all()
    (reported.folder / "report").mkdir()
    (reported.folder / "report/blind.html").write_text('<meta name="huiyin-blind" content="ABCDE 30">')
    codes = reported.folder / "blind"
    codes.mkdir()
    (codes / "a.txt").write_text(f"小梅：{code('ABCDE', '1111', 'ZZZZ00')} 哈哈\n{code('ABCDE', '1111', 'ZZZZZZ')}\n")
    (codes / "b.txt").write_text(code("ABCDE", "2222", "Z00000").lower() + "\n" + code("0BCDE", "3333", "ZZZZZZ"))
    (codes / "c.txt").write_text("ABCDE-4444-ZZZZZZ-00\n")
    page = reported.report()
    assert "25 / 60" in page and "2 codes that count" in page  # 20 of 30, and 5 of 30
    for remark in ("1 codes are damaged", "1 codes are of another page", "1 codes of somebody who had played already"):
        assert remark in page
    assert json.dumps("Friends cannot tell")[1:-1] in page
