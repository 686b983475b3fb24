"""What is measured, by name. `warm_up` runs the work once and may return facts for the first line."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import attribution
import torch
from continual import Order
from peft import PeftModel
from transformers import LlamaForCausalLM, T5ForConditionalGeneration


def load_batch(path: Path) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(rows) for key, rows in json.loads(path.read_text()).items()}


class Workload:
    def warm_up(self) -> dict:
        self.run()
        return {}

    def run(self) -> dict:
        raise NotImplementedError


class TrainingStep(Workload):
    """One optimizer step of a PEFT model."""

    def __init__(self, model, adapter: Path, batch: dict[str, torch.Tensor]):
        self.model = PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
        self.batch = batch
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.0, fused=True)

    def loss(self) -> torch.Tensor:
        return self.model(**self.batch, use_cache=False).loss

    def warm_up(self) -> dict:
        # Without dropout both sides compute the same number.
        self.model.eval()
        with torch.no_grad():
            check = self.loss().item()
        self.model.train()
        self.run()
        return {"check": check}

    def run(self) -> dict:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {"check": loss.item()}


class TrainT5(TrainingStep):
    def __init__(self, work: Path):
        model = T5ForConditionalGeneration.from_pretrained(work / "t5")
        super().__init__(model, work / "t5-active", load_batch(work / "train-t5.json"))


class TrainLlama(TrainingStep):
    """With the head on the positions that predict a label."""

    def __init__(self, work: Path):
        model = LlamaForCausalLM.from_pretrained(work / "llama")
        batch = load_batch(work / "train-llama.json")
        labels = batch.pop("labels")
        columns = (labels != -100).any(0).nonzero()[:, 0]
        self.positions, self.labels = columns - 1, labels[:, columns]
        super().__init__(model, work / "llama-active", batch)

    def loss(self) -> torch.Tensor:
        logits = self.model(**self.batch, use_cache=False, logits_to_keep=self.positions).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.labels.flatten())


class Memory(TrainT5):
    """Peak resident memory of training steps above what is held after loading."""

    STEPS = 3

    def warm_up(self) -> dict:
        # Pages of a mapped file count as held, too.
        sum(parameter.detach().sum() for parameter in self.model.parameters())
        gc.collect()
        self.held = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        return {}

    def run(self) -> dict:
        for _ in range(self.STEPS):
            loss = super().run()
        return loss | {"peak_bytes": status("VmHWM") - self.held}


def status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


class AttributionReference(Workload):
    """One comparison of the current and the previous model, which is a second set of weights."""

    def __init__(self, work: Path):
        def merged(*adapters: str):
            model = T5ForConditionalGeneration.from_pretrained(work / "t5")
            for adapter in adapters:
                model = PeftModel.from_pretrained(model, work / adapter).merge_and_unload()
            return model.eval().requires_grad_(False)

        self.previous = merged("t5-frozen")
        # The active adapter is in training and therefore not merged.
        self.current = PeftModel.from_pretrained(merged("t5-frozen"), work / "t5-active").eval().requires_grad_(False)
        self.current = self.current.base_model.model
        self.batch = load_batch(work / "attribution.json")

    def run(self) -> dict:
        ids, mask = self.batch["input_ids"], self.batch["attention_mask"]
        return {"check": attribution.measure(self.current, self.previous, ids, mask)}


class EvaluateAgnews(Workload):
    """Greedy answers to test prompts, longest first, with the adapter merged."""

    def __init__(self, work: Path):
        export = json.loads((work / "agnews.json").read_text())
        model = T5ForConditionalGeneration.from_pretrained(export["model"], dtype=torch.float32)
        self.model = PeftModel.from_pretrained(model, export["adapter"]).merge_and_unload().eval()
        self.examples = export["examples"]
        self.batch_size, self.max_new_tokens = export["batch_size"], export["max_new_tokens"]

    def answers(self) -> tuple[float, int]:
        from continual import evaluate

        return evaluate(self.model, self.examples, self.batch_size, self.max_new_tokens)

    def warm_up(self) -> dict:
        # The sum of all generated ids: equal only if practically every token is.
        return {"check": self.answers()[1]}

    def run(self) -> dict:
        return {"check": self.answers()[0]}


WORKLOADS = {
    "train-t5": TrainT5,
    "train-llama": TrainLlama,
    "attribution-reference": AttributionReference,
    "eval-agnews": EvaluateAgnews,
    "memory": Memory,
    "order1-folded": lambda work: Order(work, stack=False),
    "order1-stack": lambda work: Order(work, stack=True),
}
