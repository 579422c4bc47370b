"""The merged model in this process, for a chat without Ollama. torch is imported when a model is loaded."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

from huiyin.serving.sampling import generation_options


class MergedModel:
    """The model in `folder`, which contains its chat template; `parameters`: those of its Modelfile."""

    def __init__(self, folder: Path, parameters: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self.device).eval()
        self.parameters = parameters

    def talk(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the reply to `messages` (the last one is the user's) in pieces; closing the iterator ends the model."""
        import torch
        from transformers import TextIteratorStreamer

        prompt = self.prompt_of(messages).to(self.device)
        streamer, stop = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True), Event()
        options = {
            **{"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "streamer": streamer},
            **generation_options(self.parameters),
            "stopping_criteria": [lambda tokens, scores: torch.full(tokens.shape[:1], stop.is_set())],
        }
        thread = Thread(target=self.model.generate, kwargs=options)
        thread.start()
        try:
            yield from streamer
        finally:  # also if the reader stops early
            stop.set()
            thread.join()

    def prompt_of(self, messages: list[dict[str, str]]) -> Any:
        """Return the tokens of the prompt, shape (1, length); the oldest exchanges are left out if it is too long."""
        room = self.parameters["num_ctx"] - self.parameters["num_predict"]
        while True:
            prompt = self.tokenizer.apply_chat_template(messages, return_tensors="pt")
            if prompt.shape[1] <= room or len(messages) <= 2:
                return prompt
            messages = messages[2:]  # as Ollama does
