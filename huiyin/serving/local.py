"""The merged model in this process, for a chat where there is no Ollama."""

from threading import Event, Thread


class Merged:
    """The model in `folder`, which carries its own prompt; `parameters` are those of its Modelfile."""

    def __init__(self, folder, parameters):
        import torch  # here, since whoever has Ollama does without
        from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, logging

        self.torch, self.streamer = torch, TextIteratorStreamer
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(self.device).eval()
        self.parameters = parameters

    def talk(self, messages):
        """Yield the reply to `messages`, the last of them the user's, piece by piece."""
        room = self.parameters["num_ctx"] - self.parameters["num_predict"]
        prompt = self.tokenizer.apply_chat_template(messages, return_tensors="pt")
        while prompt.shape[1] > room and len(messages) > 2:  # the oldest exchange goes, as with Ollama
            messages = messages[2:]
            prompt = self.tokenizer.apply_chat_template(messages, return_tensors="pt")
        prompt = prompt.to(self.device)
        pieces, enough = self.streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True), Event()
        warm = self.parameters["temperature"] > 0
        sampling = {name: self.parameters[name] for name in ("temperature", "top_p", "top_k")} if warm else {}
        thread = Thread(
            target=self.model.generate,
            kwargs={
                "input_ids": prompt,
                "attention_mask": self.torch.ones_like(prompt),
                "do_sample": warm,
                "streamer": pieces,
                "max_new_tokens": self.parameters["num_predict"],
                "repetition_penalty": self.parameters["repeat_penalty"],
                "stopping_criteria": [lambda tokens, scores: self.torch.full(tokens.shape[:1], enough.is_set())],
                **sampling,
            },
        )
        thread.start()
        try:
            yield from pieces
        finally:  # whoever asked has heard enough
            enough.set()
            thread.join()
