"""The API's ids equal those of `apply_chat_template`, for the families that people serve; templates may refuse."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from api.prompts import THREAD_CHARS, Message, Prompts
from tasks.errors import ErrorCode, Refused
from tasks.profile import ModelProfile

SPECIALS = ["<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIALS += ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<bos>", "<start_of_turn>", "<end_of_turn>"]

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{%- if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "<start_of_turn>{{ role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
FAMILIES = {
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>"),
    "chatml": (CHATML, None, "<|im_end|>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>"),
}
TALKS: list[list[Message]] = [
    [{"role": "user", "content": "Count from 3 to 6."}],
    [
        {"role": "user", "content": "  spaces, 中文, العربية 🌊\n"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "<|im_end|> </s> is a special token in a message"},
    ],
    [{"role": "user", "content": "word " * THREAD_CHARS}],
]


def build_tokenizer(bos: str | None) -> Tokenizer:
    """Bytes only, and the special tokens; adds a begin token when encoding plain text, as Llama's does."""
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def build(family: str) -> tuple[Prompts, PreTrainedTokenizerFast]:
    template, bos, eos = FAMILIES[family]
    tokenizer = build_tokenizer(bos)
    specials = {"eos_token": eos} | ({"bos_token": bos} if bos else {})
    tokenizer.enable_truncation(5)  # a tokenizer.json may come with limits of its own
    profile = ModelProfile(tokenizer.to_str(), template, specials)
    tokenizer.no_truncation()
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **specials)
    return Prompts(profile), theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("talk", range(len(TALKS)))
async def test_ids_equal_those_of_transformers(family: str, talk: int) -> None:
    ours, theirs = build(family)
    expected = theirs.apply_chat_template(TALKS[talk], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(await ours.chat("m", TALKS[talk])) == expected
    text = TALKS[talk][-1]["content"]
    assert list(await ours.text(text)) == theirs(text)["input_ids"]


@pytest.mark.parametrize("family", ["mistral", "gemma"])
async def test_a_template_that_objects_is_a_refusal(family: str) -> None:
    ours, _ = build(family)
    with pytest.raises(Refused, match=r"only user and assistant|System role not supported") as caught:
        await ours.chat("m", [{"role": "system", "content": "be kind"}, *TALKS[0]])
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, "messages")


@pytest.mark.parametrize("template", ["{{ nothing.at.all }}", "{% if %}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}"])
async def test_a_broken_template_is_a_refusal(template: str) -> None:
    ours = Prompts(ModelProfile(build_tokenizer(None).to_str(), template))
    with pytest.raises(Refused, match="chat template"):
        await ours.chat("m", TALKS[0])


async def test_no_template_is_a_refusal() -> None:
    ours = Prompts(ModelProfile(build_tokenizer(None).to_str(), None))
    with pytest.raises(Refused, match="/v1/completions") as caught:
        await ours.chat("m", TALKS[0])
    assert caught.value.code is ErrorCode.NO_CHAT_TEMPLATE
