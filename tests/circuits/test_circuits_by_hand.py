"""Whole circuits of every kind of block, computed once more node by node: each write by a run of the model with that node's reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from prompts import CAUSAL, random_pairs, transformer
from torch import Tensor

from mlinterp.circuits.acdc import prune
from mlinterp.circuits.graph import Graph, Node
from mlinterp.circuits.transformer import TransformerMachine, graph_of
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.path_patcher import Path, PathPatcher
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")
KINDS = ("gpt2", "llama", "gemma2", "gpt_neox parallel")
LAYERS = {"gpt2": "n_layer"}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root, found = tmp_path_factory.mktemp("project"), {}
    for kind in KINDS:
        found[kind] = transformer(root, {**CAUSAL[kind], LAYERS.get(kind, "num_hidden_layers"): 2})
        found[kind].model.double()
        generator = torch.Generator().manual_seed(5)
        for parameter in found[kind].model.parameters():
            if parameter.ndim == 1:  # biases and the norms' weights, which begin as nothing and one
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return found


class ByHand:
    """One prompt, with some edges carrying another run's writes; streams and writes are float64 `[pos, d]`."""

    def __init__(self, subject: HuggingFaceSubject, tokens: Tensor) -> None:
        self.model, self.tokens, self.kind = subject.model, tokens, subject.architecture.model_type
        config = subject.architecture.get_text_config()
        self.n_heads = config.num_attention_heads
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // self.n_heads
        self.blocks = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(self.kind, "model.layers")

    def module(self, layer: int, path: str) -> Any:
        return self.model.get_submodule(f"{self.blocks}.{layer}.{path}")

    def run(self, hooks: list[tuple[Any, Any]]) -> Tensor:
        """Run the model with hooks on modules' outputs, and return its logits at the end."""
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        try:
            logits: Tensor = self.model(input_ids=self.tokens[None]).logits[0, -1]
            return logits
        finally:
            for handle in handles:
                handle.remove()

    def seen(self, layer: int, path: str, hooks: list[tuple[Any, Any]], *, before: bool = False) -> Tensor:
        """Return what a module takes or returns, `[pos, d]`."""
        found: list[Tensor] = []

        def look(_module: Any, args: Any, output: Any) -> None:
            value = args[0] if before else output[0] if isinstance(output, tuple) else output
            found.append(value[0].clone())

        self.run([*hooks, (self.module(layer, path), look)])
        return found[0]

    def result(self, layer: int, head: int, streams: dict[str, Tensor]) -> Tensor:
        """Return what a head's value mix is, `[pos, d_head]`, when its queries, keys and values are made from these streams."""
        norm = self.module(layer, "ln_1" if self.kind == "gpt2" else "input_layernorm")
        hooks = []
        for letter, stream in streams.items():
            path, start = self.rows(layer, head, letter)
            projection, at = self.module(layer, path), slice(start, start + self.d_head)

            def put(module: Any, _args: Any, output: Tensor, stream: Tensor = stream, at: slice = at) -> Tensor:
                output = output.clone()
                output[0, :, at] = module.forward(norm.forward(stream[None]))[0, :, at]
                return output

            hooks.append((projection, put))
        return self.seen(layer, self.out, hooks, before=True)[:, head * self.d_head : (head + 1) * self.d_head]

    def rows(self, layer: int, head: int, letter: str) -> tuple[str, int]:
        at = "qkv".index(letter)
        if self.kind == "gpt2":
            return "attn.c_attn", (at * self.n_heads + head) * self.d_head
        if self.kind == "gpt_neox":
            return "attention.query_key_value", (3 * head + at) * self.d_head
        return f"self_attn.{letter}_proj", (head // 2 if letter != "q" else head) * self.d_head

    @property
    def out(self) -> str:
        return {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}.get(self.kind, "self_attn.o_proj")

    def added(self, layer: int, results: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return what each head adds, and what attention adds besides."""
        projection = self.module(layer, self.out)
        weight = projection.weight if self.kind == "gpt2" else projection.weight.T
        parts = [part @ weight[head * self.d_head : (head + 1) * self.d_head] for head, part in enumerate(results)]
        rest = torch.zeros_like(parts[0]) if projection.bias is None else projection.bias.expand_as(parts[0])
        if self.kind == "gemma2":
            norm = self.module(layer, "post_attention_layernorm")
            size = (sum(parts).square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
            parts = [part / size * (1 + norm.weight) for part in parts]
        return parts, rest

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        names = {"gpt2": ("ln_2", "mlp"), "gemma2": ("pre_feedforward_layernorm", "mlp")}
        norm, mlp = names.get(self.kind, ("post_attention_layernorm", "mlp"))
        made: Tensor = self.module(layer, mlp).forward(self.module(layer, norm).forward(stream[None]))
        return (self.module(layer, "post_feedforward_layernorm").forward(made) if self.kind == "gemma2" else made)[0]

    def logits(self, stream: Tensor) -> Tensor:
        norm = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(self.kind, "model.norm")
        made = self.model.get_submodule(norm).forward(stream[-1:])
        found: Tensor = self.model.get_output_embeddings()(made)[0]
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return found if cap is None else torch.tanh(found / cap) * cap

    @torch.no_grad()
    def circuit(self, graph: Graph, kept: np.ndarray, other: dict[Node, Tensor]) -> tuple[dict[Node, Tensor], Tensor]:
        """Return every node's write and the logits, where edges that are not kept carry the other run's writes."""
        start: list[Tensor] = []
        first = self.model.get_submodule(f"{self.blocks}.0")
        handle = first.register_forward_pre_hook(lambda _module, args: start.append(args[0][0]))
        self.run([])
        handle.remove()
        embed, *_ = graph.nodes
        writes, stream, by_name = {embed: start[0]}, start[0], {read.name: number for number, read in enumerate(graph.reads)}

        def read(name: str) -> Tensor:
            cut = [node for node in range(graph.reads[by_name[name]].upstream) if not kept[by_name[name], node]]
            return stream - sum((writes[graph.nodes[node]] - other[graph.nodes[node]] for node in cut), start=torch.zeros_like(stream))

        for layer in range(graph.n_layers):
            results = []
            for head in range(self.n_heads):
                keys = f"L{layer}.g{head // 2}" if f"L{layer}.g0.k" in by_name else f"L{layer}.h{head}"
                streams = {"q": read(f"L{layer}.h{head}.q"), "k": read(f"{keys}.k"), "v": read(f"{keys}.v")}
                results.append(self.result(layer, head, streams))
            parts, rest = self.added(layer, results)
            own = [node for node in graph.nodes if node.layer == layer and node.kind == "head"]
            writes |= dict(zip(own, parts, strict=True))
            parallel = graph.reads[by_name[f"L{layer}.mlp"]].upstream == graph.nodes.index(own[0])
            if parallel:
                mlp = self.mlp(layer, read(f"L{layer}.mlp"))
            stream = stream + sum(parts) + rest
            if not parallel:
                mlp = self.mlp(layer, read(f"L{layer}.mlp"))
            writes[Node("mlp", layer)] = mlp
            stream = stream + mlp
        return writes, self.logits(read("logits"))


@pytest.mark.parametrize("kind", KINDS)
def test_random_circuits_are_what_they_are_node_by_node_in_float64(subjects, kind):
    subject = subjects[kind]
    (pair,) = given = random_pairs(subject.vocab, (6,))
    pairs = tokenise(given, subject)
    machine = TransformerMachine(subject, pairs, graph_of(subject), LOGIT_DIFF)
    graph = machine.graph
    clean, corrupted = (ByHand(subject, torch.tensor(tokens)) for tokens in (pair.clean, pair.corrupted))
    writes, logits = corrupted.circuit(graph, graph.whole, {})
    assert float(logits[pair.answer] - logits[pair.wrong]) == pytest.approx(machine.m_empty[0], abs=1e-5)
    circuits = [graph.whole, graph.empty, *(graph.random(share * graph.n_edges // 100, 0, share) for share in (15, 50, 85, 97))]
    for kept in circuits:
        _, logits = clean.circuit(graph, kept, writes)
        found = machine.metrics(kept[None], [0])[0, 0]
        assert found == pytest.approx(float(logits[pair.answer] - logits[pair.wrong]), abs=1e-5)
    assert np.ptp(machine.metrics(np.stack(circuits), [0])) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_one_edge_is_patching_the_path_from_its_node_to_its_readers(subjects, kind):
    """But for heads before a norm of their own (Gemma 2), whose shares of the branch are another matter when they are changed alone."""
    subject = subjects[kind]
    pairs = tokenise(random_pairs(subject.vocab, (6, 7)), subject)
    machine = TransformerMachine(subject, pairs, graph_of(subject), LOGIT_DIFF)
    patcher = PathPatcher(subject, pairs, LOGIT_DIFF, "noise")
    graph, compared, sizes = machine.graph, 0, []
    for read, node in np.argwhere(graph.whole)[::3].tolist():
        if kind == "gemma2" and graph.nodes[node].kind == "head":
            continue
        kept = graph.whole.copy()
        kept[read, node] = False
        written = [patcher.written([graph.nodes[node].sender])]
        expected = patcher.metrics([Path(row, 0) for row in (0, 1)], graph.receivers(read), written)
        assert machine.metrics(kept[None], [0, 1])[0] == pytest.approx(expected, abs=1e-5), graph.edge(read, node)
        compared, sizes = compared + 1, [*sizes, np.abs(expected - patcher.m_base).max()]
    assert compared > 10
    assert np.median(sizes) > 1e-4


def test_the_embedding_is_not_run_again_once_both_prompts_have_been(subjects):
    subject, calls = subjects["gpt2"], []
    machine = TransformerMachine(subject, tokenise(random_pairs(subject.vocab, (6,)), subject), graph_of(subject), LOGIT_DIFF)
    handle = subject.model.transformer.wte.register_forward_hook(lambda *_: calls.append(1))
    found = prune(machine, [0], 0.01)
    machine.edge_scores([0], 2)
    handle.remove()
    assert found.runs > 10
    assert calls == []
