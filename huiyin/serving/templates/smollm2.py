"""SmolLM2. Source: tokenizer_config.json of HuggingFaceTB/SmolLM2-135M-Instruct."""

from dataclasses import replace

from huiyin.serving.templates.chatml import CHATML

FORMAT = replace(
    CHATML,
    name="smollm2",
    models="SmolLM2",
    architecture="LlamaForCausalLM",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
)
