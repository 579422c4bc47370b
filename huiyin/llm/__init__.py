"""How a language model is asked: backends, cache of answers, retries. The only folder that speaks HTTP to one."""
