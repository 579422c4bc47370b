"""Personal data becomes placeholders before it reaches the dataset."""

import pytest

from huiyin.questions.redaction import Redaction


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("我电话13800138000。", "我电话[电话]。"),
        ("打138-0013-8000", "打[电话]"),
        ("+86 138 0013 8000", "[电话]"),
        ("010-62345678", "[电话]"),
        ("１３８００１３８０００", "[电话]"),
        ("身份证11010519491231002X", "身份证[身份证号]"),
        ("11010519491231002x对吗", "[身份证号]对吗"),
        ("卡号4111 1111 1111 1111", "卡号[银行卡号]"),
        ("6222021234567890128", "[银行卡号]"),
        ("a.b+c@example.com", "[邮箱]"),
        ("123456789@qq.com", "[邮箱]"),
        ("加我123456789", "加我[QQ号]"),
        ("群2900100300，来", "群[QQ号]，来"),
        # not personal data
        ("6222021234567890127", "6222021234567890127"),
        ("加我987654321", "加我987654321"),
        ("110105194912310021", "110105194912310021"),
        ("1123456789", "1123456789"),
        ("2024-01-02 12:30:45", "2024-01-02 12:30:45"),
        ("192.168.100.200", "192.168.100.200"),
        ("66666666", "66666666"),
        ("老陈在吗", "老陈在吗"),
    ],
)
def test_personal_data_is_replaced_and_nothing_else(text, hidden):
    assert Redaction(["123456789", "2900100300", "all", ""])(text) == hidden


def test_names_are_replaced_only_if_they_are_given():
    hide = Redaction([], ["老陈", "Al", "陈"])
    assert hide("Al和老陈 Also") == "[名字]和[名字] Also"
    assert hide.counts == {"name": 2}
