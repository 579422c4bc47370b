"""Qwen3 that never thinks. Source: tokenizer_config.json of Qwen/Qwen3-4B-Instruct-2507."""

from dataclasses import replace

from huiyin.serving.templates.chatml import CHATML

FORMAT = replace(CHATML, name="qwen3_nothink", models="Qwen3-4B-Instruct-2507", architecture="Qwen3ForCausalLM")
