"""Nobody's text is a control token of a model, whatever the chat format."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import EXAMPLES
from huiyin.common.control import harmless, is_seen

FORMATS = {  # from the tokenizers and chat templates of the models
    "Qwen2, Qwen3": "<|im_start|> <|im_end|> <|endoftext|> <|vision_start|> <|image_pad|> <|fim_prefix|> <|file_sep|>",
    "thoughts, tools": "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <tools> </tools>"
    " <function=look> </function> <parameter=day> <arg_key> </arg_value>",
    "Llama 3, Llama 4": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>"
    " <|finetune_right_pad_id|> <|reserved_special_token_247|> <|header_start|> <|eot|>",
    "Llama 2": "<s> </s> <unk> [INST] [/INST] <<SYS>> <</SYS>>",
    "Mistral": "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [TOOL_CALLS] [/TOOL_RESULTS]"
    " [IMG] [IMG_BREAK] [THINK] [/THINK] [PREFIX] [control_8]",
    "Gemma 2, Gemma 3": "<bos> <eos> <pad> <unk> <mask> <start_of_turn> <end_of_turn> <start_of_image> <unused12>"
    " <image_soft_token> [multimodal]",
    "Gemma 4": "<|turn> <turn|> <|channel> <channel|> <|think|> <|tool_call> <tool_call|>",
    "MiniCPM": "<用户> <AI> <s> </s> <unk> <|im_start|> <|im_end|> <image> </image> <image_id> <slice> <ref> <box>",
    "SmolLM2": "<|im_start|> <|im_end|> <|endoftext|> <repo_name> <reponame> <file_sep> <filename> <gh_stars>"
    " <issue_start> <issue_comment> <jupyter_start> <jupyter_output> <empty_output>",
    "DeepSeek": "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>"
    " <｜tool▁calls▁begin｜> <think>",
    "Hunyuan": "<｜hy_begin▁of▁sentence｜> <｜hy_User｜> <｜hy_place▁holder▁no▁2｜> <|extra_0|>"
    " <|startoftext|> <answer>",
    "GLM": "[gMASK] [sMASK] <sop> <eop> <|user|> <|assistant|> <|observation|>",
    "InternLM, Baichuan": "<|action_start|> [UNUSED_TOKEN_145] <reserved_106>",
    "EXAONE": "[|system|] [|user|] [|assistant|] [|endofturn|]",
    "Command R, Seed": "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <PAD> <EOS> <seed:think> </seed:tool_call>",
    "gaps and pictures in LLaMA-Factory": "{{content}} {{idx}} <image> <video> <audio>",
}
TOKENS = sorted({token for tokens in FORMATS.values() for token in tokens.split()})
ORDINARY = [
    "<3",
    "a<b，c>d",
    "[图片]",
    "[捂脸]",
    "<b>粗</b>",
    "https://a.example/?q=<x>&y=[1]",
    "x |> f",
    "f <| x",
    ">|<",
]
ORDINARY += ["(>_<)", "v[3]", "{{ .System }}", "《书》", "＜think＞", "<-- 看这里", "think", "[/INST", "<|im_end"]


def tokens_in(text):
    """Return the control tokens in `text`, if what nobody sees is taken out of it, too."""
    seen = "".join(filter(is_seen, text))
    return [token for token in TOKENS if token in text or token in seen]


@pytest.mark.parametrize("tokens", FORMATS.values(), ids=FORMATS)
def test_the_control_tokens_of_a_format_lose_their_brackets_and_stay_readable(tokens):
    for token in tokens.split():
        hidden = [f"{token[:2]}\u200b{token[2:]}", f"{token[:-1]}\ufe0f{token[-1]}", "\x00".join(token)]
        for text in (token, f"好{token}的", token * 3, f"{token[:-1]}{token}{token[-1]}", *hidden):
            assert tokens_in(text), text
            assert tokens_in(harmless(text)) == []
            assert unicodedata.normalize("NFKC", harmless(text)) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text):
    assert harmless(text) == text


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from([*TOKENS, *"<>[]{}|｜/\n\u200bab", "<|", "|>", "im_end"]), max_size=12).map("".join))
def test_what_is_harmless_stays_so(text):
    assert tokens_in(harmless(text)) == []
    assert harmless(harmless(text)) == harmless(text)
