"""Section 6, the other side: transformers' GPT-2 of the same sizes, with a static cache."""

# PyTorch's packages are no dependency of this project.
# pyright: reportMissingImports=false

import functools
from typing import Any

from benchmarks.accelerator import decoding, models
from benchmarks.accelerator.rivals import find_device
from benchmarks.accelerator.rows import Rows, Unavailable

MODES = ("eager", "compile")


def names(tiny: bool = False) -> list[str]:
    """Returns the rows, in order of worth."""
    batches = decoding.TINY_BATCHES if tiny else decoding.BATCHES
    return [
        f"{name}, {mode}, batch {batch}"
        for mode in MODES
        for batch in batches
        for name in decoding.MODELS
    ]


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows."""
    for row in names(tiny):
        rows.measure(row, functools.partial(_measure, row, tiny))


def _measure(row: str, tiny: bool) -> dict[str, Any]:
    """Times generation of as many tokens from as long prompts as `decoding` does."""
    import torch
    from transformers import StaticCache

    name, mode, batch = row.split(", ")
    size = int(batch.removeprefix("batch "))
    device = find_device(tiny)
    if mode == "compile" and device == "cpu":  # where transformers never compiles by itself
        raise Unavailable("not on this backend (cpu)")
    few, many = (decoding.TINY_FEW, decoding.TINY_MANY) if tiny else (decoding.FEW, decoding.MANY)
    config = models.lm(name, tiny)
    length = decoding.TINY_PROMPT if tiny else decoding.PROMPT
    prompts = torch.tensor(decoding.prompts(config, size, length), device=device)
    model = _make_model(name, tiny, device)
    # One cache for all runs, emptied before each: its compiled programs hold its address.
    cache = StaticCache(config=model.config, max_cache_len=config.block_size)

    def decode(new: int) -> None:
        with torch.no_grad():
            cache.reset()
            tokens = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                past_key_values=cache,
                disable_compile=mode == "eager",
                pad_token_id=0,
            )
        if tokens.shape[1] != length + new:
            raise RuntimeError(f"{tokens.shape[1] - length} tokens came where {new} were wanted")
        if device == "cuda":
            torch.cuda.synchronize()

    return decoding.time_decoding(decode, size, few, many)


@functools.lru_cache(maxsize=1)
def _make_model(name: str, tiny: bool, device: str) -> Any:
    """GPT-2 with random weights; learned positions where gpt_nano's are rotary."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = models.lm(name, tiny)
    sizes = GPT2Config(
        vocab_size=config.vocabulary,
        n_positions=config.block_size,
        n_embd=config.width,
        n_head=config.heads,
        n_layer=config.depth.layers,
        n_inner=config.mlp,
        bos_token_id=0,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(sizes).to(device, torch.bfloat16).eval()
