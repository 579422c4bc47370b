"""The finished model: its chat template, what Ollama can serve, talking to it on this machine."""
