"""The control tokens and role marks of chat formats, and how a text of somebody is kept from being one.

A tokenizer makes a control token of such a mark wherever it stands, in a message too: whoever typed it could end a turn
and begin another. Its brackets become full-width, so that people can still read it.

Sources: the tokenizers of the models, and the templates of LLaMA-Factory 0.9.5 (data/template.py, tool_utils.py). They
are those of all models that may read a text, the judges included; that no frame of the formats that we train
(serving/templates/) can be written in one, the tests say.
"""

import re

from huiyin.common.characters import is_seen

# Every pattern begins with a bracket, and matches a text with full-width brackets only where it matches the same text
# with plain ones: so what has been made harmless has no match (no class such as [^>], which a wide bracket would fit).
WORDS = [
    # Llama 2, Mistral, MiniCPM 1-4, SentencePiece models in general
    r"s|bos|eos|pad|unk|mask|cls|sep|eod|sop|eop|BOS|EOS|PAD|UNK|MASK|CLS|SEP|EOD|[A-Z]{2,}(?:_[A-Z]+)*_TOKEN|用户|AI",
    # Gemma; DeepSeek, ERNIE
    r"(?:start|begin|beginning|end)_of_\w+|(?:start|end)_function_\w+|\w+_soft_token",
    # thinking and tools: Qwen, DeepSeek, Hunyuan, GLM, Seed, MiniMax
    r"think|answer|tools?|tool_\w+|functions?|function_\w+|parameters?|arg_key|arg_value|(?:seed|minimax):\w+",
    # roles written as tags
    r"role|_user|_bot|_system|_start|_end",
    # pictures and sound: MiniCPM-V, InternVL, Qwen-VL, LLaMA-Factory's own placeholders
    r"image|image_id|img|video|audio|slice|ref|box|quad|point|IMG_CONTEXT",
    # SmolLM2, StarCoder, Yi
    r"repo_?name|file_sep|filename|gh_stars|empty_output|commit_\w+|(?:fim|issue|jupyter)_\w+",
    # places kept free in a vocabulary: Gemma, Baichuan, Mistral, T5
    r"unused_?\d+|reserved_\w+|SPECIAL_\d+|extra_id_\d+|TOKENS_UNUSED_\d+",
]
SQUARE = [
    # Mistral
    r"INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS|THINK|MODEL_SETTINGS",
    r"PREFIX|MIDDLE|SUFFIX|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|control_\d+",
    # GLM, BERT's, InternLM, Gemma, the places that llama.cpp keeps free
    r"[gs]?MASK|CLS|SEP|UNK|BOS|EOS|PAD\d*|UNUSED_TOKEN_\d+|multimodal|@BOS@",
]
CONTROL = re.compile(
    "|".join(
        [
            r"<[|｜].{1,64}?[|｜]>",  # <|im_end|> of ChatML, Llama 3, Phi, GLM and most others; DeepSeek's <｜User｜>
            r"<[|｜][\w▁]+>|<[\w▁]+[|｜]>",  # Gemma 4: <|turn> and <turn|>
            r"\[\|.{1,64}?\|\]",  # EXAONE: [|user|]
            r"<</?SYS>>",  # Llama 2
            r"</?(?:functions?|parameters?|invoke|tool_call)[\s=:].{0,64}?>",  # <function=name>
            rf"</?(?:{'|'.join(WORDS)})\s*/?>",
            rf"\[/?(?:{'|'.join(SQUARE)})\]",
            r"\{\{(?:content|idx)\}\}",  # the gaps of LLaMA-Factory's templates
        ]
    )
)
WIDE = str.maketrans("<>[]{}", "＜＞［］｛｝")


def harmless(text: str) -> str:
    """Return `text` with the brackets of its control tokens full-width; all other characters stay.

    Characters that nobody sees do not hide a token: what removes them later would make it one. Use it last: what is
    joined or cut out afterwards can make a token of two halves.
    """
    if not any(bracket in text for bracket in "<[{"):
        return text
    places = [place for place, character in enumerate(text) if is_seen(character)]
    letters = list(text)
    for match in CONTROL.finditer("".join(text[place] for place in places)):
        for place in places[slice(*match.span())]:
            letters[place] = text[place].translate(WIDE)
    return "".join(letters)
