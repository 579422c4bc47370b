"""ChatML, of which most formats are a variant.

Source: https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
"""

from huiyin.serving.templates.chat_format import ChatFormat, Part

START, END = "<|im_start|>", "<|im_end|>"
CHATML = ChatFormat(
    name="chatml",
    models="",
    architecture="",
    system=Part(f"{START}system\n", f"{END}\n"),
    user=Part(f"{START}user\n", f"{END}\n{START}assistant\n"),
    reply=Part("", f"{END}\n"),
    control=[START, END],
    stop=[END],
)
