"""Gemma 3, the models for text alone (270M, 1B). Source: https://ai.google.dev/gemma/docs/core/prompt-structure"""

from huiyin.serving.templates.chat_format import ChatFormat, Part

FIRST, START, END = CONTROL = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
FORMAT = ChatFormat(
    name="gemma3",
    models="Gemma 3 270M and 1B",
    architecture="Gemma3ForCausalLM",
    system=Part("", "\n\n"),
    user=Part(f"{START}user\n", f"{END}\n{START}model\n"),
    reply=Part("", f"{END}\n"),
    control=CONTROL,
    stop=[END],
    first=FIRST,
    system_in_prompt=True,
)
