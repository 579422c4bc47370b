"""The prompt of the training and the prompt of the finished model are the same, token for token.

LLaMA-Factory's own encoding is held against what Go's text/template makes of our Modelfile, and what transformers makes
of our chat template.
"""

import json
import re
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import CLEAN, EXAMPLES, ROOT
from huiyin.serving.ollama_limits import TEMPLATES
from huiyin.serving.template import modelfile, read_prompt

# What differs from qwen in the tokenizers of Llama 3: the marks. Nothing there says add_bos_token.
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
PERSONA = "你是“老陈”，正在QQ群里和群友聊天。"
SYSTEMS = [
    PERSONA,
    "",
    'Says """ often,\nat a line\'s end """\nand {{ .Content }}, \\n',
    '"',
    '"""',
    "家👨\u200d👩\u200d👧\u3000人\u200b",
]
CONVERSATIONS = [
    [{"role": "user", "content": "在吗？"}],
    [
        {"role": "user", "content": "在吗？"},
        {"role": "assistant", "content": "在，怎么了"},
        {"role": "user", "content": "没事 {{ .System }} <b>&\n第二行"},
    ],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2，\n3"},
        {"role": "user", "content": "4"},
        {"role": "assistant", "content": "👨\u200d👩\u200d👧"},
        {"role": "user", "content": '"5"'},
    ],
]


def given_system(conversations, text):
    return [[{"role": "system", "content": text}, *conversation] for conversation in conversations]


@pytest.fixture(scope="session")
def ollama_prompts(tmp_path_factory):
    """Return a function (Modelfile, conversations) -> what Ollama would hand to the model."""
    if not shutil.which("go"):
        pytest.skip("no Go here, so nobody looks whether Ollama asks as the training did: apt install golang-go")
    program = tmp_path_factory.mktemp("go") / "prompt"
    build = {**CLEAN, "GO111MODULE": "off", "GOCACHE": str(ROOT / ".cache/go")}
    subprocess.run(["go", "build", "-o", program, ROOT / "tests/prompt/main.go"], env=build, check=True)

    def prompts(text, conversations):
        told = json.dumps({"modelfile": text, "conversations": conversations})
        done = subprocess.run([program], input=told, capture_output=True, encoding="utf-8", check=True)
        return json.loads(done.stdout)["prompts"]

    return prompts


class Trained:
    """LLaMA-Factory's template `name` with the tiny model's tokenizer, and what export makes of its Modelfile."""

    def __init__(self, name, base, folder):
        from llamafactory.data.template import get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        if name == "llama3":
            marks = {"bos_token": LLAMA3[0], "eos_token": LLAMA3[3], "additional_special_tokens": LLAMA3[1:3]}
            self.tokenizer.add_special_tokens(marks)
        self.template = get_template_and_fix_tokenizer(self.tokenizer, DataArguments(template=name, default_system=""))
        self.tokenizer.save_pretrained(folder)
        self.folder = folder
        self.written = self.template.get_ollama_modelfile(self.tokenizer)
        (folder / "Modelfile").write_text(self.written, encoding="utf-8")
        self.prompt = read_prompt(folder / "Modelfile", folder / "tokenizer_config.json")

    def trained_on(self, conversation, default_system):
        """The tokens before the reply, as LLaMA-Factory encodes a row whose history and prompt these are."""
        self.template.default_system = default_system
        system = conversation[0]["content"] if conversation[0]["role"] == "system" else None
        messages = [message for message in conversation if message["role"] != "system"]
        reply = {"role": "assistant", "content": "x"}
        return self.template.encode_oneturn(self.tokenizer, [*messages, reply], system)[0]

    def tokens(self, text):
        """As llama-server reads a prompt: special tokens are seen, and one first if the tokenizer says so."""
        config = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        first = [self.tokenizer.bos_token_id] if config.get("add_bos_token") else []
        return first + self.tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    return {name: Trained(name, demo[0] / "data/tiny/tiny-qwen2", tmp_path_factory.mktemp(name)) for name in TEMPLATES}


def test_the_templates_named_as_supported_are_those_tested():
    said = re.search(r"^# Its chat format: (.*?)\. ", (ROOT / "config/train.yaml").read_text(encoding="utf-8"), re.M)
    assert re.findall(r"(\w+) \(", said[1]) == TEMPLATES


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_asks_as_the_training_did(trained, ollama_prompts, name, system):
    model = trained[name]
    conversations = [*CONVERSATIONS, *given_system(CONVERSATIONS, "另一个人")]
    text = modelfile(model.prompt, system, False, {"stop": model.prompt.stop})
    for conversation, prompt in zip(conversations, ollama_prompts(text, conversations), strict=True):
        assert model.tokens(prompt) == model.trained_on(conversation, system), prompt


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_asks_as_the_training_did(trained, name, system):
    model = trained[name]
    template = model.prompt.jinja_template(system, False)
    for conversation in [*CONVERSATIONS, *given_system(CONVERSATIONS, "另一个人")]:
        asked = model.tokenizer.apply_chat_template(conversation, chat_template=template, add_generation_prompt=True)
        assert asked == model.trained_on(conversation, system)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_fixed_system_text_lets_no_other_through(trained, ollama_prompts, system):
    model = trained["qwen"]
    conversations = given_system(CONVERSATIONS, "Current date: 2026-11-23")
    prompts = ollama_prompts(modelfile(model.prompt, system, True, {}), conversations)
    template = model.prompt.jinja_template(system, True)
    for conversation, prompt in zip(conversations, prompts, strict=True):
        wanted = model.trained_on(conversation[1:], system)
        assert model.tokens(prompt) == wanted
        assert model.tokenizer.apply_chat_template(conversation, chat_template=template) == wanted


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=st.text(max_size=20), said=st.lists(st.text(max_size=12).map(str.strip), min_size=3, max_size=3))
def test_whatever_is_said_ollama_asks_as_the_training_did(trained, ollama_prompts, system, said):
    system = system.encode(errors="ignore").decode().replace("{{content}}", "").replace("\r", "")
    said = [text.encode(errors="ignore").decode() or "嗯" for text in said]
    conversation = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)
    ]
    model = trained["qwen"]
    [prompt] = ollama_prompts(modelfile(model.prompt, system, False, {}), [conversation])
    assert model.tokens(prompt) == model.trained_on(conversation, system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_newline_more_would_be_seen(trained, ollama_prompts, name):
    """Wherever one is put into what is said around the texts, some conversation gets other tokens."""
    model = trained[name]
    text = modelfile(model.prompt, PERSONA, False, {})
    conversation = CONVERSATIONS[1]
    start, end = text.index('TEMPLATE """') + len('TEMPLATE """'), text.index('"""\n\nSYSTEM')
    places = [start + place.start() for place in re.finditer(r"(?=<\|)|(?<=\|>)|(?<=\n)", text[start:end])]
    assert len(places) > 8
    for place in places:
        [prompt] = ollama_prompts(text[:place] + "\n" + text[place:], [conversation])
        assert model.tokens(prompt) != model.trained_on(conversation, PERSONA), text[place - 20 : place + 20]


def test_a_first_token_that_the_tokenizer_adds_is_not_said_twice(trained, tmp_path):
    model = trained["llama3"]
    assert model.prompt.prefix == "<|begin_of_text|>"
    config = json.loads((model.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    assert read_prompt(model.folder / "Modelfile", tmp_path / "tokenizer_config.json").prefix == ""


def test_the_demos_model_is_asked_as_it_was_trained(demo, trained, ollama_prompts):
    exported = demo[0] / "data/demo/10002/exported"
    rows = json.loads((demo[0] / "data/demo/10002/generated/alpaca.json").read_text(encoding="utf-8"))[-20:]
    conversations = [
        [
            {"role": role, "content": text}
            for exchange in [*row["history"], [row["instruction"]]]
            for role, text in zip(("user", "assistant"), exchange, strict=False)
        ]
        for row in rows
    ]
    prompts = ollama_prompts((exported / "Modelfile").read_text(encoding="utf-8"), conversations)
    for row, conversation, prompt in zip(rows, conversations, prompts, strict=True):
        given = [{"role": "system", "content": row["system"]}, *conversation]
        assert trained["qwen"].tokens(prompt) == trained["qwen"].trained_on(given, "")
