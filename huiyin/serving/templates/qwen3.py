"""Qwen3 that can think or not (0.6B to 14B), told not to. Source: tokenizer_config.json of Qwen/Qwen3-1.7B.

Its own template has the empty thought before the last reply only. Here it stands before each: so LLaMA-Factory trains
rows of several replies with `enable_thinking: false` (data/template.py, ReasoningTemplate.encode_multiturn).
"""

from dataclasses import replace

from huiyin.serving.templates.chatml import CHATML

OPEN, CLOSE = "<think>", "</think>"
FORMAT = replace(
    CHATML,
    name="qwen3",
    models="Qwen3 0.6B to 14B",
    architecture="Qwen3ForCausalLM",
    thought=f"{OPEN}\n\n{CLOSE}\n\n",
    control=[*CHATML.control, OPEN, CLOSE],
    thinking=("can",),
)
