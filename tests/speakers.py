"""Invented members of a group, each with habits of writing: for the tests of what is measured about a voice."""

import random

THINGS = "饺子 台灯 风筝 毛衣 地图 油条 雨伞 竹笋 键盘 西瓜 仙人掌 口琴".split()
ENGLISH_THINGS = "teapot ladder biscuit violin lantern puddle walnut carpet kettle marble".split()


def says(speaker, count, seed):
    """Return `count` turns of `speaker`, a function below; the same ones for the same seed."""
    chance = random.Random(f"{speaker.__name__} {seed}")
    return [speaker(chance) for _ in range(count)]


def lively(chance):
    """Short, several messages a turn, laughs, a face at the end."""
    messages = [
        chance.choice(["咱那{}呢", "{}整一个呗", "哈哈哈哈{}", "{}可得劲了吧", "瞅瞅{}啦"]).format(
            chance.choice(THINGS)
        )
        for _ in range(chance.randint(1, 3))
    ]
    return "，".join(messages) + chance.choice(["", "[捂脸]", "~~~", "🎈"])


def formal(chance):
    """One long message with full stops and no face."""
    middle = chance.choice(["我认为{}应当如此", "关于{}我没有意见", "请各位注意{}的情况", "{}的问题已经说明"])
    end = chance.choice(["。", "。谢谢。", "，供参考。"])
    return (
        middle.format(chance.choice(THINGS)) + "，".join(chance.sample(["确实如此", "以后再谈", "不必着急"], 2)) + end
    )


def loud(chance):
    """English: a capital first, exclamation marks."""
    return chance.choice(["What a {}!!!", "I want that {}!", "Never a {} again!!"]).format(
        chance.choice(ENGLISH_THINGS)
    )


def quiet(chance):
    """English: no capitals, two dots, a smile."""
    start = chance.choice(["well, the {}", "hahaha a {}", "maybe some {}", "www.example.org has a {}"])
    return start.format(chance.choice(ENGLISH_THINGS)) + chance.choice(["..", " :)", ".. hm"])
