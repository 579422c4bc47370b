"""Any server with OpenAI's protocol: vLLM (which can spread a model over several machines), llama-server."""

from typing import Any

from huiyin.common.errors import UserError
from huiyin.common.settings import without_credentials
from huiyin.llm.backend import (
    Answer,
    ChatRequest,
    chat_completion,
    in_format_of,
    read_completion,
    send,
    session_for,
    shown,
)


class OpenAI:
    """The model `model` on the server at `url`, with or without the /v1."""

    def __init__(
        self, url: str, model: str, num_ctx: int, read_seconds: float, allow_remote: bool = False, connections: int = 1
    ) -> None:
        self.url = without_credentials(url).rstrip("/").removesuffix("/v1")
        self.model, self.num_ctx, self.read_seconds = model, num_ctx, read_seconds
        self.session = session_for(url, allow_remote, connections)

    def identity(self) -> str:
        """Return the name of the model, as these servers report no digest."""
        answer = send(self.session, "GET", f"{self.url}/v1/models", self.read_seconds)
        with in_format_of("OpenAI", self.url):
            return self.identity_in(answer.get("data") or [])

    def identity_in(self, models: list[dict[str, Any]]) -> str:
        names = [model.get("id") for model in models]
        if self.model not in names:
            raise UserError(
                f"the server at {self.url} has no model {self.model!r}, but: {shown(', '.join(map(str, names)))}; "
                "set model in llm.yaml"
            )
        model = models[names.index(self.model)]
        # vLLM and llama-server each have a field of their own for it; others have none
        context = model.get("max_model_len") or (model.get("meta") or {}).get("n_ctx")
        if context and context < self.num_ctx:
            raise UserError(
                f"the server at {self.url} gives {self.model} a context of {context} tokens, "
                f"less than num_ctx: {self.num_ctx} in llm.yaml"
            )
        return self.model

    def prepare(self) -> None:
        """Do nothing: these servers load their model when they start."""

    def chat(self, request: ChatRequest) -> Answer:
        body = chat_completion(request, model=self.model)
        return read_completion(send(self.session, "POST", f"{self.url}/v1/chat/completions", self.read_seconds, body))
