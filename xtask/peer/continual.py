"""
A whole stream of tasks with preset `reference`: one subspace a task, orthogonality weighted by the measured similarity.

Frozen subspaces are folded into the weights, or with `stack` run beside them with dropout on their input, as released.
Evaluation runs on folded weights in either case.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import attribution
import torch
from torch.nn import functional
from transformers import T5ForConditionalGeneration


class Adapted(torch.nn.Module):
    """A linear layer without bias, its frozen subspaces and the one in training."""

    def __init__(self, linear: torch.nn.Linear, rank: int, alpha: float, dropout: float, stack: bool):
        super().__init__()
        self.base = self.folded = linear.weight.detach()
        self.rank, self.scale, self.dropout, self.stack = rank, alpha / rank, dropout, stack
        self.past_a = self.past_b = None
        self.a = self.b = None

    def start(self) -> None:
        width = self.base.shape[1]
        bound = width**-0.5
        self.a = torch.nn.Parameter(torch.empty(self.rank, width).uniform_(-bound, bound))
        self.b = torch.nn.Parameter(torch.zeros(self.base.shape[0], self.rank))

    def freeze(self) -> None:
        a, b = self.a.detach(), self.b.detach()
        self.past_a = a if self.past_a is None else torch.cat([self.past_a, a])
        self.past_b = b if self.past_b is None else torch.cat([self.past_b, b], 1)
        self.folded = self.base + self.scale * self.past_b @ self.past_a
        self.a = self.b = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stack and self.training and self.past_a is not None:
            y = functional.linear(x, self.base)
            dropped = functional.dropout(x, self.dropout, True)
            y = y + functional.linear(functional.linear(dropped, self.past_a) * self.scale, self.past_b)
        else:
            y = functional.linear(x, self.folded)
        if self.a is not None:
            dropped = functional.dropout(x, self.dropout, self.training)
            y = y + functional.linear(functional.linear(dropped, self.a) * self.scale, self.b)
        return y

    def penalty(self) -> torch.Tensor:
        return (self.past_a @ self.a.T).abs().sum()


class Order:
    """The stream that our side exported: same examples, same batches, same prompts."""

    def __init__(self, work: Path, stack: bool):
        self.export = json.loads((work / "order1.json").read_text())
        self.stack = stack
        self.loaded = T5ForConditionalGeneration.from_pretrained(self.export["model"], dtype=torch.float32)
        self.loaded.requires_grad_(False)

    def warm_up(self) -> dict:
        tasks = self.export["tasks"]
        few = [task | {"batches": task["batches"][:1], "evaluation": task["evaluation"][:8]} for task in tasks[:2]]
        self.learn(few)
        return {}

    def run(self) -> dict:
        cross_entropy, score = self.learn(self.export["tasks"])
        return {"check": cross_entropy, "score": score}

    def learn(self, tasks: list[dict]) -> tuple[float, float]:
        """Mean cross entropy of the steps, and the mean score after the last task."""
        export, model = self.export, copy.deepcopy(self.loaded)
        layers = adapt(model, export, self.stack)
        previous = None
        losses = []
        self.evaluate(model, tasks)
        for index, task in enumerate(tasks):
            for layer in layers:
                layer.start()
            if index > 0:
                previous = without_active(model)
            parameters = [parameter for layer in layers for parameter in (layer.a, layer.b)]
            optimizer = torch.optim.AdamW(parameters, lr=export["lr"], weight_decay=0.0, fused=True)
            model.train()
            for step, rows in enumerate(task["batches"]):
                batch = collate([task["train"][row] for row in rows])
                weight = export["lambda1"]
                if index > 0 and step % export["interval"] == 0:
                    rho = attribution.measure(model, previous, batch["input_ids"], batch["attention_mask"])
                    weight *= 1 - rho
                optimizer.zero_grad(set_to_none=True)
                loss = model(**batch, use_cache=False).loss
                losses.append(loss.item())
                if index > 0:
                    loss = loss + weight * sum(layer.penalty() for layer in layers)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            for layer in layers:
                layer.freeze()
            scores = self.evaluate(model, tasks)
        return sum(losses) / len(losses), sum(scores) / len(scores)

    def evaluate(self, model, tasks: list[dict]) -> list[float]:
        model.eval()
        size, tokens = self.export["eval_batch_size"], self.export["max_new_tokens"]
        return [evaluate(model, task["evaluation"], size, tokens)[0] for task in tasks]


def adapt(model, export: dict, stack: bool) -> list[Adapted]:
    layers = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in ("q", "v") and isinstance(child, torch.nn.Linear):
                layer = Adapted(child, export["rank"], export["alpha"], export["dropout"], stack)
                setattr(parent, name, layer)
                layers.append(layer)
    return layers


def without_active(model):
    """The previous model as released: a second set of weights."""
    previous = copy.deepcopy(model).requires_grad_(False)
    for module in previous.modules():
        if isinstance(module, Adapted):
            module.a = module.b = None
    return previous


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Padded on the right."""

    def padded(key: str, value: int) -> torch.Tensor:
        rows = [torch.tensor(example[key]) for example in examples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    lengths = torch.tensor([len(example["source"]) for example in examples])
    ids = padded("source", 0)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": padded("target", -100)}


def evaluate(model, examples: list[dict], batch_size: int, max_new_tokens: int) -> tuple[float, int]:
    """Exact matches in percent, and the sum of the generated ids."""
    ordered = sorted(examples, key=lambda example: -len(example["source"]))
    right, total = 0, 0
    with torch.inference_mode():
        for at in range(0, len(ordered), batch_size):
            rows = ordered[at : at + batch_size]
            batch = collate(rows)
            del batch["labels"]
            answers = model.generate(
                **batch, max_new_tokens=max_new_tokens, min_length=0, num_beams=1, do_sample=False, use_cache=True
            )
            for row, answer in zip(rows, answers[:, 1:].tolist(), strict=True):
                # Behind the end token there is padding.
                answer = answer[: answer.index(1) + 1] if 1 in answer else answer
                right += answer == row["target"]
                total += sum(answer)
    return 100 * right / len(examples), total
