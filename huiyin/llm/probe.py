"""Does the server keep to the form of an answer, with the options that we send? Asked before the first question.

Some versions of Ollama ignore `format` for some models where thinking is switched off (issues 14645, 15260 and 17871 of
ollama/ollama), and some models think nevertheless. Then each question would fail, after all its tries.
"""

import json
import sys

from huiyin.common.errors import UserError
from huiyin.llm.backend import THINKS, ChatRequest, Unavailable, Unusable
from huiyin.llm.pool import Pool

TRIES = 3  # of which one is enough, unless the connection fails
TEMPERATURE = 0.8  # of the second and third: at 0 they would be the first again
WORDS = ["x7q", "k2v"]  # with which nobody answers a greeting
PROBE = ChatRequest(
    messages=[{"role": "user", "content": "你好，今天过得怎么样？"}],
    schema={
        "type": "object",
        "properties": {"answers": {"type": "string", "enum": WORDS}},
        **{"required": ["answers"], "additionalProperties": False},
    },
    temperature=0.0,
    seed=0,
    max_tokens=32,
)


def check_form(pool: Pool, model: str, logprobs: bool) -> None:
    """`UserError` if the model does not answer in the form that is asked for; a warning if it thinks. A server that
    does not answer is left to the questions. logprobs: the questions will ask for them."""
    why = ""
    for attempt in range(TRIES):
        try:
            temperature = TEMPERATURE if attempt else 0.0
            answer = pool.chat(PROBE._replace(seed=attempt, temperature=temperature, logprobs=logprobs))
            if json.loads(answer.text)["answers"] in WORDS:
                if answer.thought:
                    print(
                        f"WARNING: {model}: {THINKS}, so each answer takes longer; take one that does not",
                        file=sys.stderr,
                    )
                return
            why = "it has the form and says something else"
        except Unavailable:
            return
        except Unusable as error:
            why = str(error)
        except (ValueError, LookupError, TypeError):
            why = "it is free text"
    raise UserError(
        f"{model} does not answer in the form that it is given ({why}), so nothing of yours was asked; take another "
        "model in llm.yaml, one that does not think, or another version of the server"
    )
