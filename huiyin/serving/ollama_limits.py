"""What Ollama can make a model of, and serve under the very prompt of the training."""

import json

from safetensors import safe_open

from huiyin.common.errors import UserError

# LLaMA-Factory's templates whose prompt in Ollama is proved equal, token for token (tests/test_prompt.py).
TEMPLATES = ["qwen", "llama3"]

# The text models among those that convert/convert.go of Ollama 0.33 lists. Not there: plain Qwen3, Mistral.
ARCHITECTURES = {
    "CohereForCausalLM",
    "DeepseekV3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GptOssForCausalLM",
    "Lfm2ForCausalLM",
    "Llama4ForConditionalGeneration",
    "LlamaForCausalLM",
    "Ministral3ForCausalLM",
    "Mistral3ForConditionalGeneration",
    "MixtralForCausalLM",
    "Olmo3ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3NextForCausalLM",
}
OTHERWISE = "or set another backend than ollama in llm.yaml and serve the merged model in a way of your own"

BLOCKS = {"q4_K_M": 256, "q8_0": 32}  # a row of weights is packed in blocks of so many


def check_served(template, config, backend):
    """Raise `UserError` where Ollama is to serve the model and cannot; `config`: config.json of the base model."""
    if backend != "ollama":
        return
    architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["a model of no known kind"]
    if architectures[0] not in ARCHITECTURES:
        raise UserError(
            f"{config}: Ollama cannot import {architectures[0]}; take a Qwen2.5 or Llama 3 model as "
            f"model_name_or_path in train.yaml, {OTHERWISE}"
        )
    if template not in TEMPLATES:
        raise UserError(
            f"template {template} in train.yaml: only of {' and '.join(TEMPLATES)} is it known that Ollama "
            f"asks as the training did; take a base model with one of them, {OTHERWISE}"
        )


def flatten_rope(config, needed):
    """Ollama reads rope_theta and rope_scaling at the top level of config.json only, where transformers 5 has neither.

    Without them the model would talk nonsense, so what is `needed` and not there is `UserError`.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    rope = values.get("rope_parameters") or {}
    if "rope_theta" not in values:
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        elif needed:
            raise UserError(f"{config}: no rope_theta; this base model cannot be served by Ollama")
    scaling = values.get("rope_scaling") or {name: value for name, value in rope.items() if name != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        values["rope_scaling"] = {**scaling, "type": kind, "rope_type": kind}  # its converters look for either
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def shapes(merged):
    """Yield the shape of each weight."""
    for path in sorted(merged.glob("*.safetensors")):
        with safe_open(path, "np") as weights:
            yield from (weights.get_slice(name).get_shape() for name in weights.keys())  # noqa: SIM118


def choose_quantize(wanted, merged):
    """Return how Ollama shall pack the weights in the folder `merged`: as wanted, or by the length of their rows."""
    if wanted != "auto":
        return wanted
    rows = [shape[-1] for shape in shapes(merged) if len(shape) > 1]
    return next((kind for kind, block in BLOCKS.items() if not any(row % block for row in rows)), "f16")
