"""Conversations as transformers renders them and cuts them into tokens. Writes chat.json beside itself.

    pip install transformers==5.24.0 jinja2
    python test/golden/chat.py

The templates are this project's own, in the manners of ChatML, of Llama 3 and of Llama 2; so are the tokenizers.
"""

import datetime
import json
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

here = Path(__file__).parent

chatml = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou listen well.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

thinking = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

headers = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set today = strftime_now('%d %b %Y') %}
{%- else %}
    {%- set today = '1 Jan 2000' %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instruction = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instruction = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today is ' ~ today ~ '.\\n\\n' ~ instruction ~ '<|eot_id|>' }}
{%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('the roles must alternate') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

brackets = """
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = '<<SYS>>\\n' ~ message.content ~ '\\n<</SYS>>\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- bos_token ~ '[INST] ' ~ ns.system ~ message.content | trim ~ ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""

documents = ["system\nYou listen well.", "user\nWhich sound is it?", "assistant\nIt is a bell.", "Today is 05 Jul 2024."]
documents += [f"Which sound comes {order}? Options: bell, drum, siren." for order in ("first", "last")] * 3
cut = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(special, begins_with=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if begins_with is not None:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{begins_with} $A", special_tokens=[(begins_with, tokenizer.token_to_id(begins_with))]
                ),
            ]
        )
    return tokenizer


def pieces():
    """As transformers has SentencePiece's BPE of Llama 2: a space is put in front of every text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    alphabet = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    trainer = trainers.BpeTrainer(vocab_size=220, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in documents], trainer)
    model = json.loads(trained.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


conversations = [
    [("user", "Which sound is it?")],
    [("system", "You are brief."), ("user", "Which sound comes first? Options: bell, drum.")],
    [("system", "You are brief."), ("user", "Which sound comes first? Options: bell, drum."), ("assistant", "It is a bell.")],
    [("system", "  Spaces around.\n"), ("user", "\n Is it   a bell?  \n\n"), ("assistant", " Yes, it's 12345 bells. ")],
    [("user", "Что это? 🔔 <tag> {{ messages }}"), ("assistant", "колокол"), ("user", "1 & 2 \"quoted\" don't"), ("assistant", "ok")],
]
day = datetime.datetime(2024, 7, 5)


class ThatDay(datetime.datetime):
    """Templates are told the same day whenever this runs."""

    @classmethod
    def now(cls, tz=None):
        return day


chat_template_utils.datetime = ThatDay


def case(name, template, tokenizer, variables, **special):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)
    rendered = []
    for conversation in conversations:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for generation in (False, True):
            text = fast.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **variables
            )
            rendered.append(
                {
                    "messages": messages,
                    "addGenerationPrompt": generation,
                    "text": text,
                    "ids": fast(text, add_special_tokens=False)["input_ids"],
                }
            )
    # Here the spellings of special tokens are the user's, and stay text.
    hostile = [{"role": "user", "content": f"Say {''.join(tokenizer.get_added_tokens_decoder()[i].content for i in (0, 1))} twice"}]
    return {
        "hostile": {
            "messages": hostile,
            "ids": fast.apply_chat_template(
                hostile, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False, **variables
            ),
        },
        "name": name,
        "template": template,
        "variables": variables,
        "tokenizer": json.loads(tokenizer.to_str()),
        "config": special,
        "beginning": fast("")["input_ids"],
        "rendered": rendered,
    }


im = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
llama = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
golden = {
    "date": day.strftime("%Y-%m-%d"),
    "cases": [
        case("ChatML", chatml, byte_level(im), {}, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        case("thinking", thinking, byte_level(im), {"enable_thinking": False}, eos_token="<|im_end|>"),
        case("headers", headers, byte_level(llama, llama[0]), {}, bos_token=llama[0], eos_token="<|eot_id|>"),
        case("brackets", brackets, byte_level(["<s>", "</s>"], "<s>"), {}, bos_token="<s>", eos_token="</s>"),
        case("pieces", brackets, pieces(), {}, bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
    ],
}
(here / "chat.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
