"""Random models of the measured shapes, adapters for them, and batches, all from fixed seeds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}
T5_LORA = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], **LORA)
LLAMA_LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **LORA)


def write(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    t5(work)
    llama(work)
    batches(work)


def t5(work: Path) -> None:
    """T5-small's shape, v1.0."""
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, feed_forward_proj="relu",
            dropout_rate=0.1, tie_word_embeddings=True, decoder_start_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        # At their initial size the unscaled logits of preset `reference` saturate the softmax.
        model.shared.weight.mul_(0.05)
    model.save_pretrained(work / "t5")
    for seed, name in [(2, "frozen"), (3, "active")]:
        adapter(T5ForConditionalGeneration.from_pretrained(work / "t5"), T5_LORA, seed, work / f"t5-{name}")


def llama(work: Path) -> None:
    torch.manual_seed(4)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=8, max_position_embeddings=2048, attention_dropout=0.0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.save_pretrained(work / "llama")
    adapter(model, LLAMA_LORA, 5, work / "llama-active")


def adapter(model, config: LoraConfig, seed: int, folder: Path) -> None:
    """A PEFT adapter with B of a size that a short training would give it."""
    torch.manual_seed(seed)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.005)
    peft.save_pretrained(folder, save_embedding_layers=False)


def batches(work: Path) -> None:
    generator = torch.Generator().manual_seed(6)

    def ids(rows: int, length: int, vocabulary: int) -> torch.Tensor:
        return torch.randint(3, vocabulary, (rows, length), generator=generator)

    def save(name: str, input_ids: torch.Tensor, labels: torch.Tensor) -> None:
        batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
        text = json.dumps({key: value.tolist() for key, value in batch.items()})
        (work / f"{name}.json").write_text(text)

    save("train-t5", ids(8, 128, 32000), ids(8, 8, 32000))
    save("attribution", ids(4, 128, 32000), ids(4, 8, 32000))
    sequence = ids(4, 256, 32000)
    labels = sequence.clone()
    labels[:, :-16] = -100
    save("train-llama", sequence, labels)
