"""Makes a tiny Qwen3 with random weights: `<vLLM's python> tiny_model.py FOLDER [HEAD_DIM] [raw]`. Nothing is fetched.

Run by the Python of vLLM's venv, which has torch and transformers. Always the same weights and words. Made for
comparing answers: what it writes is printable ASCII (the rows of all other tokens are zero, so it never ends by
itself), and its greedy choice is never close.

HEAD_DIM 32 is one that vLLM's attention on CPU knows. With 16 the server starts, answers /health, and dies at the
first request: a broken engine that looks healthy.

With `raw` it writes any bytes, most of them half characters: the hardest text to continue.
"""

from __future__ import annotations

import random
import sys

CONTEXT = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = (
    "the a router engine carries answers request token quick brown fox jumps over lazy dog hello world how are you "
    "one two three four five"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(folder: str, head_dim: int, *, raw: bool) -> None:
    """Write the model and its tokenizer into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    dice = random.Random(0)
    words = WORDS.split()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(dice.choices(words, k=12)) for _ in range(2000)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIAL[2], pad_token=SPECIAL[0], model_max_length=CONTEXT
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head_dim,
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT,
            # The usual 0.02 gives nearly flat odds, where rounding could decide.
            initializer_range=0.2,
            tie_word_embeddings=False,
            eos_token_id=SPECIAL.index("<|im_end|>"),
        )
    )
    with torch.no_grad():
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            if token < len(SPECIAL) or not (raw or (text.isascii() and text.isprintable())):
                model.lm_head.weight[token] = 0
    model.save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32, raw=sys.argv[3:] == ["raw"])
