"""The prompt of the training and the prompt of the finished model are the same, token for token.

What LLaMA-Factory trains on is compared with what transformers and llama-server make of our chat template, with what
Go's text/template makes of our Modelfile, and with the tokens that train counts.
"""

import itertools
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_formats import (
    EXCHANGES,
    ODD,
    PERSONA,
    SYSTEMS,
    Compared,
    Go,
    conversations,
    forged,
    messages,
    talks,
    write_base,
)
from helpers import EXAMPLES, ROOT
from huiyin.common.control import harmless
from huiyin.serving.modelfile import modelfile
from huiyin.serving.templates.known import FORMATS, KNOWN
from huiyin.training.rows import Dataset, Row
from huiyin.training.template import Encoding

SEVERAL = ["qwen", "llama3", "gemma3"]  # for each kind of frame one


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    if not Go.is_here():
        pytest.skip("no Go, so the prompts of Ollama cannot be compared: apt install golang-go")
    return Go(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """{name of a format: the format with a small vocabulary, trained and served with the system text ODD}"""
    folder = tmp_path_factory.mktemp("formats")

    def make(chat_format):
        base = write_base(chat_format, folder / chat_format.name)
        return Compared(chat_format, base, folder / chat_format.name / "saved", ODD)

    return {name: make(chat_format) for name, chat_format in FORMATS.items()}


def test_the_templates_named_as_supported_are_those_tested():
    text = (ROOT / "config/train.yaml").read_text(encoding="utf-8").replace("\n# ", " ")
    comment = re.search(r"Its chat template: (.*?)\. ", text)
    assert comment[1].replace(" or ", ", ") == KNOWN


@pytest.mark.parametrize("name", FORMATS)
def test_a_finished_model_is_prompted_as_it_was_trained(compared, name):
    model = compared[name]
    for exchanges, system in itertools.product(talks(model.format), SYSTEMS):
        trained = model.trained(exchanges, system)
        assert model.by_transformers(exchanges, system) == trained
        assert model.by_llama_server(exchanges, system) == trained


@pytest.mark.parametrize("default", [ODD, PERSONA, "", '"', '"""'])
@pytest.mark.parametrize("name", FORMATS)
def test_ollama_prompts_the_model_as_the_training_did(compared, go, name, default):
    model = compared[name]
    for exchanges, system in itertools.product(talks(model.format), SYSTEMS if default == ODD else [None]):
        trained = model.trained(exchanges, default if system is None else system)
        assert model.by_ollama(go, exchanges, system, default) == trained


@pytest.mark.parametrize("name", FORMATS)
def test_the_row_ends_as_transformers_renders_it(compared, name):
    """The losses of export and voice are those of whole conversations."""
    model = compared[name]
    whole = messages(itertools.chain(*EXCHANGES), PERSONA)
    assert model.tokenizer.apply_chat_template(whole) == model.row(EXCHANGES, PERSONA)[0]


@pytest.mark.parametrize("name", FORMATS)
def test_no_text_can_end_its_turn(compared, name):
    """The control tokens of a row are those of the frame; the tests above say that the served prompt is the same."""
    model = compared[name]

    def control_tokens(said):
        tokens, _ = model.row([(said, said)] * 2, said)
        return sum(token in model.tokenizer.added_tokens_decoder for token in tokens)

    text = forged(model.format)
    assert control_tokens(text) > control_tokens("好")  # what this is about
    assert control_tokens(harmless(text)) == control_tokens("好")


@pytest.mark.parametrize("name", SEVERAL)
def test_a_fixed_system_prompt_cannot_be_replaced(compared, go, name):
    model = compared[name]
    asked = conversations(EXCHANGES, "Current date: 2026-11-23")
    for system in (ODD, PERSONA, ""):
        trained, template = model.trained(EXCHANGES, system), model.format.jinja_template(system, True)
        assert list(map(model.read, go.of(model.format, system, asked, fixed=True))) == trained
        assert [model.tokenizer.apply_chat_template(one, chat_template=template) for one in asked] == trained


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=st.text(max_size=20), texts=st.lists(st.text(max_size=12).map(str.strip), min_size=4, max_size=4))
def test_any_text_is_prompted_by_ollama_as_in_the_training(compared, go, system, texts):
    system = system.encode(errors="ignore").decode().replace("{{content}}", "").replace("\r", "")
    texts = [text.encode(errors="ignore").decode() or "嗯" for text in texts]
    model, exchanges = compared["qwen"], [(texts[0], texts[1]), (texts[2], texts[3])]
    prompts = go.of(model.format, system, conversations(exchanges, None))
    tokens = [model.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    assert tokens == model.trained(exchanges, system)


@pytest.mark.parametrize("name", FORMATS)
def test_an_additional_newline_would_be_noticed(compared, go, name):
    """At each position around the texts it changes the tokens of the conversation."""
    model = compared[name]
    text = modelfile(model.format, PERSONA, False, {})
    asked, trained = conversations(EXCHANGES, None)[-1:], model.trained(EXCHANGES, PERSONA)[-1]
    start, end = text.index('TEMPLATE """') + len('TEMPLATE """'), text.index('"""\n\nSYSTEM')
    places = {start + match.start() for match in re.finditer(r"(?=<[|\w])|(?<=[|\w]>)|(?<=\n)", text[start:end])}
    assert len(places) > 6
    for place in places:
        [prompt] = go.prompts(text[:place] + "\n" + text[place:], asked)
        assert model.read(prompt) != trained, text[place - 20 : place + 20]


def test_the_model_of_the_demo_is_prompted_as_it_was_trained(demo, compared, go):
    exported = demo[0] / "data/demo/10002/exported"
    rows = json.loads((demo[0] / "data/demo/10002/generated/alpaca.json").read_text(encoding="utf-8"))[-20:]
    exchanges = [[*map(tuple, row["history"]), (row["instruction"], row["output"])] for row in rows]
    model, asked = (
        compared["qwen"],
        [conversations(each, row["system"])[-1] for each, row in zip(exchanges, rows, strict=True)],
    )
    prompts = go.prompts((exported / "Modelfile").read_text(encoding="utf-8"), asked)
    for row, each, prompt in zip(rows, exchanges, prompts, strict=True):
        assert model.read(prompt) == model.trained(each, row["system"])[-1]


# ---- How LLaMA-Factory is told


@pytest.mark.parametrize("name", FORMATS)
def test_what_ends_a_reply_and_what_the_models_say_by_default_is_as_llamafactory_has_it(compared, name):
    from llamafactory.data.template import TEMPLATES

    chat_format, theirs = FORMATS[name], TEMPLATES[name]
    assert (chat_format.stop, chat_format.default_system) == (theirs.stop_words, theirs.default_system)
    model = compared[name]
    assert model.tokenizer.eos_token == chat_format.stop[0]
    generation = json.loads((model.folder / "generation_config.json").read_text(encoding="utf-8"))
    assert model.tokenizer.eos_token_id in generation["eos_token_id"]


def test_no_thought_is_taught_and_each_reply_has_an_empty_one_before_it(compared):
    """LLaMA-Factory's defaults teach it as a part of the reply; with mask_history it stands before the last alone."""
    model = compared["qwen3"]
    thought = model.tokenizer.encode(model.format.thought, add_special_tokens=False)
    [(_, taught)] = model.with_settings(enable_thinking=True).tokens([model.as_row(EXCHANGES, None)])
    [(_, learnt)] = model.factory.tokens([model.as_row(EXCHANGES, None)])
    assert sum(taught) == sum(learnt) + len(thought) * len(EXCHANGES)
    assert all(prompt[-len(thought) :] == thought for prompt in model.trained(EXCHANGES, ""))
    tokens, _ = model.row(EXCHANGES, None)
    [(masked, _)] = model.with_settings(mask_history=True).tokens([model.as_row(EXCHANGES, None)])
    assert masked == tokens
    [(by_default, _)] = model.with_settings(mask_history=True, preserve_thinking=False).tokens(
        [model.as_row(EXCHANGES, None)]
    )
    assert len(by_default) == len(tokens) - len(thought) * (len(EXCHANGES) - 1)


# ---- The rows that train passes on


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    texts=st.lists(st.text(max_size=12).map(harmless), min_size=6, max_size=6),
    system=st.sampled_from(["", PERSONA, ODD]),
)
def test_train_counts_the_tokens_that_llamafactory_makes(compared, encodings, texts, system):
    exchanges = list(zip(texts[::2], texts[1::2], strict=True))
    dataset = Dataset([], [Row(*exchanges[-1], system, exchanges[:-1])], [], system)
    for name, encoding in encodings.items():
        [row] = dataset.measure(encoding, 0).rows
        assert row.tokens() == len(compared[name].row(exchanges, system)[0])


@pytest.fixture(scope="module")
def encodings(compared):
    return {name: Encoding(model.format, model.base) for name, model in compared.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_no_reply_is_learnt_without_its_end(compared, name):
    """A long paste stands in a prompt and in a reply; LLaMA-Factory would cut both rows."""
    from bench.rows_that_fit import check

    paste = "抄来的一大段，看不完的。" * 15
    exchanges = [("早", "早啊"), (paste, "太长"), ("说啥", paste), ("哦", "就这"), ("走吧", "好，走")]
    row = Row(*exchanges[-1], PERSONA, exchanges)
    held_out = Row("到了吗", "到了", PERSONA, exchanges)
    numbers = check(Dataset([], [row], [held_out], PERSONA), FORMATS[name], compared[name].base, 120)
    assert numbers[:3] == [2, 2, 12]  # rows, longer ones, replies
    assert numbers[3] < 12  # those that would be learnt with their end
    assert numbers[5] > 0 and numbers[6] == numbers[7] > 0  # samples left out; replies, those learnt with their end
