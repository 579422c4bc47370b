"""The blind test, and both pages in a real browser, where there is one."""

import json
import re
import shutil

import pytest

from case_folders import turns
from huiyin.report.blind import choose, masks, needed
from huiyin.voice.copies import copy_finder
from reported import Blind, Reported

TURNS = turns([{"time": 0, "user_id": "1", "text": "在", "nickname": "小梅"}])


def line(prompt="问", reply="真的", trained="学来的", decided_by="quote"):
    return {"prompt": prompt, "reply": reply, "trained": trained, "decided_by": decided_by}


@pytest.mark.parametrize(("items", "score"), [(10, 9), (30, 20), (90, 54), (100, 59)])
def test_so_many_right_answers_show_that_somebody_can_tell(items, score):
    assert needed(items) == score


@pytest.mark.parametrize(
    "left_out",
    [
        line(reply="好的好的"),
        line(trained="好的，好的！"),
        line(trained="x" + "一二三四五六七八九十" * 3),
        line(reply="学来的。"),
        line(trained=""),
        line(decided_by="written"),
    ],
    ids=["real in training", "model in training", "a long run", "equal", "empty", "prompt written"],
)
def test_a_copy_is_no_item(left_out):
    training = ["好的好的", "一二三四五六七八九十" * 4]
    is_copied = copy_finder(training, [left_out["trained"]])
    items = choose([left_out, line()], training, is_copied, str, 30)
    assert items == [{"prompt": "问", "real": "真的", "model": "学来的"}]


def test_replies_of_like_length_come_first_and_personal_data_is_hidden():
    lines = [line(trained="很长很长很长的一句话"), line(prompt="打 13800138000", reply="好", trained="嗯")]
    items = choose(lines, [], lambda text: False, lambda text: text.replace("13800138000", "[电话]"), 1)
    assert items == [{"prompt": "打 [电话]", "real": "好", "model": "嗯"}]


def test_without_consent_there_is_no_page(tmp_path):
    done = Blind(tmp_path).run(TURNS, consent="no")
    assert done.stderr.strip() == (
        "blind.py: the page would hold real messages of other people; ask them, then: make blind CONSENT=yes"
    )
    assert done.returncode == 1 and not (tmp_path / "report").exists()


def test_too_few_replies_are_said(tmp_path):
    done = Blind(tmp_path, number=9).run(TURNS)
    assert done.returncode == 1 and "only 8 held-out replies can be used" in done.stderr


def test_the_source_does_not_tell_which_reply_is_real(tmp_path):
    assert Blind(tmp_path).run(TURNS).returncode == 0
    page = (tmp_path / "report/blind.html").read_text()
    items = json.loads(re.search(r'id="items">(.*?)</script>', page)[1])
    page_id, key = (re.search(rf'{name} = "(\w+)"', page)[1] for name in ("PAGE", "KEY"))
    second = [int(bit) ^ mask for bit, mask in zip(key, masks(page_id), strict=False)]
    assert [item["replies"][one][0][:2] for item, one in zip(items, second, strict=True)] == ["真的"] * 30
    assert 5 < sum(second) < 25 and key != "".join(map(str, second))


def opened(browser, path, **options):
    """Return a page with the file open, and the list of what went wrong or was asked for."""
    page, wrong = browser.new_context(**options).new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.goto(path.as_uri())
    page.on("request", lambda request: wrong.append(request.url))
    return page, wrong


def test_the_report_in_a_browser(browser, tmp_path):
    reported = Reported(tmp_path)
    reported.write_all("<script>document.title = 'broken'</script>")
    reported.report()
    page, wrong = opened(
        browser, tmp_path / "report/index.html", viewport={"width": 400, "height": 800}, locale="zh-CN"
    )
    assert "小梅" in page.title()
    assert page.locator("h2:visible").all_inner_texts()[1:4] == ["每条消息的去向", "群聊", "谁在回谁"]
    page.click("#language")
    assert page.locator("h2:visible").all_inner_texts()[1:4] == [
        "Where every message went",
        "The group",
        "Who answers what",
    ]
    assert all(page.locator("svg.chart:has(text)").all_text_contents())
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert wrong == []


def test_the_blind_page_is_played_through_and_its_code_counts(browser, tmp_path):
    assert Blind(tmp_path).run(TURNS).returncode == 0
    page, wrong = opened(browser, tmp_path / "report/blind.html", locale="en-US")
    page.click("#go")
    for index in range(30):  # the real one in the first 22, then the other
        first = page.inner_text("#first").startswith("真的")
        page.click("#first" if first == (index < 22) else "#second")
    assert page.inner_text("#score") == "22" and page.is_visible("#can") and not page.is_visible("#cannot")
    assert page.locator("#answers .real .bubble").all_inner_texts()[0].startswith("真的")
    (tmp_path / "blind/friend.txt").write_text("my code: " + page.inner_text("#code"))
    assert wrong == []
    told = Reported(tmp_path)
    shutil.rmtree(tmp_path / "generated")
    shutil.rmtree(tmp_path / "voice")
    told.write_all()
    assert "22 / 30" in told.report() and "Friends can tell" in told.report()
