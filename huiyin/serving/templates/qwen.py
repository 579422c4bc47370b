"""Qwen2.5. Source: tokenizer_config.json of Qwen/Qwen2.5-1.5B-Instruct."""

from dataclasses import replace

from huiyin.serving.templates.chatml import CHATML

FORMAT = replace(
    CHATML,
    name="qwen",
    models="Qwen2.5",
    architecture="Qwen2ForCausalLM",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
)
