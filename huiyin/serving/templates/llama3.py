"""Llama 3 to 3.3. Source: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/"""

from huiyin.serving.templates.chat_format import ChatFormat, Part

CONTROL = FIRST, START, STOP, END = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def header(role: str) -> str:
    return f"{START}{role}{STOP}\n\n"


FORMAT = ChatFormat(
    name="llama3",
    models="Llama 3 to 3.3",
    architecture="LlamaForCausalLM",
    system=Part(header("system"), END),
    user=Part(header("user"), END + header("assistant")),
    reply=Part("", END),
    control=CONTROL,
    stop=[END, "<|eom_id|>"],  # the second ends a message that goes on after a tool's answer, from Llama 3.1 on
    first=FIRST,
)
