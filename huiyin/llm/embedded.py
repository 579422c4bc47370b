"""llama-server (the engine inside Ollama) in our own process, from a GGUF file: nothing to start first."""

from pathlib import Path

import xllamacpp

from huiyin.common.errors import UserError
from huiyin.common.stage import sha256
from huiyin.llm.backend import TooLong, Unavailable, Unusable, chat_completion, read_completion


class Embedded:
    """The model in the GGUF file `model`, with `parallel` slots of `num_ctx` tokens each; `threads` 0: one a core."""

    def __init__(self, model, num_ctx, parallel, threads=0):
        if not Path(model).is_file():
            raise UserError(
                f"{model}: no such file; backend embedded needs the path of a GGUF model in llm.yaml, "
                "and without any model pair.yaml can say use_llm: false"
            )
        self.url = self.model = model
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = num_ctx * parallel  # shared out evenly among the slots
        params.n_parallel = parallel
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup = False
        params.verbosity = -1
        try:
            self.server = xllamacpp.Server(params)
        except RuntimeError:
            raise UserError(f"{model}: llama.cpp cannot load it; is it a whole GGUF model?") from None

    def identity(self):
        return f"sha256:{sha256(self.model)}"

    def prepare(self):
        """Nothing: it is loaded."""

    def chat(self, messages, schema, temperature, seed, max_tokens, logprobs=False):
        """Return the Answer, bound by the JSON schema `schema` (None: free text)."""
        try:
            answer = self.server.handle_chat_completions(
                chat_completion({}, messages, schema, temperature, seed, max_tokens, logprobs)
            )
        except RuntimeError as error:  # what the model wrote is no UTF-8, for one
            raise Unusable(str(error)) from None
        if error := answer.get("error"):
            if error.get("type") == "exceed_context_size_error":
                raise TooLong(f"{self.model}: {error['message']}")
            if error["code"] < 500:
                raise UserError(f"{self.model} refuses the question: {error['message']}")
            raise Unavailable(error["message"])
        return read_completion(answer)
