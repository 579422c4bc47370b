"""Any server that speaks OpenAI's protocol: vLLM (which spreads over several machines by itself), llama-server."""

from huiyin.common.errors import UserError
from huiyin.llm.backend import chat_completion, read_completion, send, session_for


class OpenAI:
    """The model `model` on the server at `url`, with or without the /v1."""

    def __init__(self, url, model, num_ctx, read_seconds, allow_remote=False, connections=1):
        self.url, self.model, self.num_ctx = url.rstrip("/").removesuffix("/v1"), model, num_ctx
        self.read_seconds = read_seconds
        self.session = session_for(url, allow_remote, connections)

    def identity(self):
        """The name of the model, since these servers know no digest; Unavailable or `UserError` if it is not there."""
        models = send(self.session, "GET", f"{self.url}/v1/models", self.read_seconds).get("data") or []
        names = [model.get("id") for model in models]
        if self.model not in names:
            raise UserError(
                f"the server at {self.url} has no model {self.model!r}, but: {', '.join(map(str, names))}; "
                "set model in llm.yaml"
            )
        [served] = [model for model in models if model["id"] == self.model][:1]
        # vLLM and llama-server each tell in a way of their own; others do not
        context = served.get("max_model_len") or (served.get("meta") or {}).get("n_ctx")
        if context and context < self.num_ctx:
            raise UserError(
                f"the server at {self.url} gives {self.model} a context of {context} tokens, "
                f"less than num_ctx: {self.num_ctx} in llm.yaml"
            )
        return self.model

    def prepare(self):
        """Nothing: these servers load their model when they start."""

    def chat(self, messages, schema, temperature, seed, max_tokens, logprobs=False):
        """Return the Answer, bound by the JSON schema `schema` (None: free text)."""
        body = chat_completion({"model": self.model}, messages, schema, temperature, seed, max_tokens, logprobs)
        return read_completion(send(self.session, "POST", f"{self.url}/v1/chat/completions", self.read_seconds, body))
