"""How replies are drawn from a model: the parameters of the finished model, for transformers."""

from collections.abc import Mapping
from typing import Any

SAMPLING = ["temperature", "top_p", "top_k", "repeat_penalty", "num_predict"]  # as Ollama calls them


def generation_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of transformers' `generate` that stand for `parameters`, which has at least `SAMPLING`."""
    warm = parameters["temperature"] > 0
    return {
        **{"do_sample": warm, "max_new_tokens": parameters["num_predict"]},
        "repetition_penalty": parameters["repeat_penalty"],
        **{name: parameters[name] if warm else None for name in ("temperature", "top_p", "top_k")},
    }
