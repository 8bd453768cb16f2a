"""The numbers of the tiny Aria, its tokenizer and its processor.

Real architecture in small: 64 routed experts of which 6 act on a token, 2 shared experts, a patch-14
vision tower and a projector with 128 or 256 queries. The tokenizer has Aria's control tokens, the image
token at id 9 and, like the hub's, a `<pad>` whose id lies one past the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AriaConfig, AriaProcessor, AriaTextConfig, PreTrainedTokenizerFast
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

VOCABULARY = 768
IMAGE_TOKEN_ID = 9
CONTROL_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "<fim_middle>",
    "<|im_start|>",
    "<|im_end|>",
    "<fim_prefix>",
    "<fim_pad>",
    "<fim_suffix>",
    "<|img|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<fim_prefix><|img|><fim_suffix>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config() -> AriaConfig:
    """Configuration of the tiny Aria: about 2.2 M parameters, 4.5 MB in bf16."""
    text = AriaTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        moe_num_experts=64,
        moe_topk=6,
        moe_num_shared_experts=2,
        initializer_range=0.06,
        rms_norm_eps=1e-5,
        max_position_embeddings=65536,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    vision = Idefics3VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.06,
        image_size=980,
        patch_size=14,
    )
    config = AriaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE_TOKEN_ID,
        projector_patch_to_query_dict={1225: 128, 4900: 256},
        initializer_range=0.06,
    )
    config.architectures = ["AriaForConditionalGeneration"]
    return config


def tiny_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `corpus`, with Aria's control tokens at the front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # The hub tokenizer's <pad> is id 100352 with an embedding of 100352 rows; ours keeps that trap.
    filler = [AddedToken(f"<|reserved_{n}|>", special=True) for n in range(tokenizer.get_vocab_size(), VOCABULARY)]
    tokenizer.add_special_tokens([*filler, AddedToken("<pad>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<|img|>"},
        model_max_length=65536,
    )


def tiny_processor(tokenizer: PreTrainedTokenizerFast) -> AriaProcessor:
    """Aria's processor around `tokenizer`, on the PIL image processor (no torchvision needed)."""
    return AriaProcessor(
        image_processor=AriaImageProcessorPil(max_image_size=980, min_image_size=336),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
