"""llama-server (the engine inside Ollama) in our own process, from a GGUF file: nothing to start first."""

import secrets
from pathlib import Path

import xllamacpp

from huiyin.common.digests import sha256
from huiyin.common.errors import UserError
from huiyin.llm.backend import (
    Answer,
    ChatRequest,
    TooLong,
    Unavailable,
    Unusable,
    chat_completion,
    read_completion,
    shown,
)


def server_parameters(model: str, num_ctx: int, parallel: int) -> xllamacpp.CommonParams:
    """Return those of a llama-server with the GGUF file `model`, and `parallel` slots of `num_ctx` tokens each."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = num_ctx * parallel  # divided evenly among the slots
    params.n_parallel = parallel
    params.warmup = False
    params.verbosity = -1
    return params


def start_server(params: xllamacpp.CommonParams) -> xllamacpp.Server:
    """Return the llama-server, which ends when nobody refers to it any more; raise `UserError` if it does not start."""
    try:
        return xllamacpp.Server(params)
    except RuntimeError:
        raise UserError(f"{params.model.path}: llama.cpp cannot load it; is it a whole GGUF model?") from None


class Embedded:
    """The model in the GGUF file `model`, with `parallel` slots of `num_ctx` tokens each; 0 threads: one per core."""

    def __init__(self, model: str, num_ctx: int, parallel: int, threads: int = 0) -> None:
        if not Path(model).is_file():
            raise UserError(
                f"{model}: no such file; backend embedded needs the path of a GGUF model in llm.yaml, "
                "and without any model pair.yaml can say use_llm: false"
            )
        self.url = self.model = model
        params = server_parameters(model, num_ctx, parallel)
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # it also listens on a port of this machine, of which we need nothing: nobody knows the key
        params.api_keys, params.ui = [secrets.token_urlsafe()], False
        self.server = start_server(params)

    def identity(self) -> str:
        return f"sha256:{sha256(self.model)}"

    def prepare(self) -> None:
        """Do nothing: the model is loaded."""

    def chat(self, request: ChatRequest) -> Answer:
        try:
            answer = self.server.handle_chat_completions(chat_completion(request))
        except RuntimeError:  # for one, if what the model wrote is not UTF-8; the text may quote it
            raise Unusable("llama.cpp cannot read what the model wrote") from None
        if failure := answer.get("error"):
            message = shown(failure["message"])
            if failure.get("type") == "exceed_context_size_error":
                raise TooLong(f"{self.model}: {message}")
            if failure["code"] < 500:
                raise UserError(f"{self.model} refuses the question: {message}")
            raise Unavailable(message)
        return read_completion(answer)

    def likeliest(self, prompt: str, number: int) -> tuple[int, dict[int, float]]:
        """Return (the number of tokens of `prompt`, the log probabilities of the `number` likeliest next ones).

        The next token is made to be an "a", which does not change what is reported: llama-server reports nothing of a
        token that ends the text or is a part of a character.
        """
        asked = {"prompt": prompt, "n_predict": 1, "n_probs": number, "logit_bias": [["a", 100.0]], "temperature": 0}
        answer = self.server.handle_completions({**asked, "cache_prompt": False})
        [token] = answer["choices"][0]["logprobs"]["content"]
        return answer["usage"]["prompt_tokens"], {top["id"]: top["logprob"] for top in token["top_logprobs"]}
