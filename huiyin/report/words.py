"""Words of the page in two languages for what receipts name: stages, reasons, ways, habits."""

from markupsafe import Markup

from huiyin.report.page import say

Words = dict[str, tuple[str, str]]

STAGES: Words = {
    "decrypt": ("decrypt: rows of the database", "decrypt：数据库的行"),
    "parse": ("parse: messages", "parse：消息"),
    "combine": ("combine: turns", "combine：发言"),
    "pair": ("pair: turns of the member", "pair：此人的发言"),
    "gen": ("gen: rows of the dataset", "gen：数据集的行"),
    "train": ("train: samples learnt", "train：学到的样本"),
    "export": ("export: files of the model", "export：模型文件"),
    "voice": ("voice: replies measured", "voice：测量的回复"),
}

REASONS: Words = {
    "damaged": ("on damaged pages", "数据页损坏"),
    "system": ("written by QQ itself", "系统消息"),
    "not_a_group": ("not of a group", "不是群聊"),
    "recalled": ("recalled", "已撤回"),
    "no_time": ("without a time", "没有时间"),
    "no_body": ("without content", "没有内容"),
    "undecodable": ("cannot be decoded", "无法解码"),
    "filtered": ("excluded by the settings", "被设置排除"),
    "duplicate": ("twice", "重复"),
    "bad_line": ("broken line", "格式错误的行"),
    "empty": ("no text", "没有文字"),
    "older": ("older", "较早"),
    "repeats_previous": ("repeats the previous", "与上一段相同"),
    "unfilled": ("replies to nothing", "没有回谁"),
    "doubtful": ("doubtful pair", "配对存疑"),
    "failed": ("no valid answer", "没有有效回答"),
    "formula": ("said too often", "说得太多的套话"),
    "too_long": ("too long", "太长"),
    "none": ("said to nobody", "不是在回谁"),
    "no_candidates": ("nobody spoke before", "之前没有人说话"),
    "quotes_outside": ("quotes something without text", "引用的消息没有文字"),
    "empty_prompt": ("not asked", "没有询问"),
    "undecided": ("undecided", "无法判断"),
    "low_confidence": ("too uncertain", "把握太小"),
}

WAYS: Words = {
    "quote": ("quote", "引用"),
    "linker": ("linker", "关联模型"),
    "llm": ("language model", "语言模型"),
    "rule": ("rule on names", "称呼规则"),
    "previous": ("the turn before", "上一段话"),
    "mention": ("mention", "@ 提及"),
    "written": ("prompt written by the model", "由模型补写"),
    "unpaired": ("replies to nobody", "没有回谁"),
}

HABITS: Words = {
    "characters": ("characters", "字数"),
    "messages": ("messages in a reply", "一次发几条"),
    "marks_per_100_characters": ("marks in 100 characters", "每百字标点"),
    "punctuation": ("with punctuation", "用标点"),
    "punctuation_at_the_end": ("punctuation at the end", "句末标点"),
    "faces": ("faces and emoji", "表情"),
    "particles": ("particles", "语气词"),
    "repeated_letters": ("repeated letters", "叠字"),
    "links": ("links", "链接"),
    "small_first_letter": ("small first letter", "小写开头"),
    "typical_words": ("typical words", "口头禅"),
}

COPIES: Words = {
    "word_for_word": ("word for word in the training", "与训练内容一字不差"),
    "30_characters": ("30 characters in a row of the training", "连续 30 字与训练内容相同"),
    "personal_data": ("personal data", "个人信息"),
    "system_text": ("repeats the system text", "重复系统提示词"),
}


NUMBERS: Words = {
    "own_gain": (
        "gain on the member minus that on others (bits a character)",
        "对此人比对别人多提升的（比特/字）",
    ),
    "gain": ("gain in words (bits a character)", "用词上的提升（比特/字）"),
    "taken": ("replies taken for the member's", "被认作此人的回复"),
    "ended": ("replies that the model ended itself", "由模型自己结束的回复"),
    "copied": ("word for word in the training", "与训练内容一字不差"),
    "held_out": ("replies measured", "测量的回复"),
}


def words(of: Words, name: str) -> Markup:
    """Return the words for `name` in both languages, `name` itself where there are none."""
    return say(*of[name]) if name in of else Markup("{}").format(name)
