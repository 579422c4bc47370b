"""MiniCPM5, which thinks only when it is told to. Source: chat_template.jinja of openbmb/MiniCPM5-1B."""

from dataclasses import replace

from huiyin.serving.templates.chatml import CHATML

FIRST = "<s>"
FORMAT = replace(
    CHATML,
    name="cpm4",
    models="MiniCPM5-1B",
    architecture="LlamaForCausalLM",
    first=FIRST,
    control=[FIRST, *CHATML.control],
    thinking=("never", "can"),
)
