"""The model in the learner: a frozen base, one LoRA adapter, and the two things asked of them.

`hidden` (states behind the final norm, which the loss multiplies with the frozen head) and `generate`
(batched greedy or seeded sampling). Weights are read from safetensors only and no code of the model's is run.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from buffer.adapters import CONFIG, MANIFEST, TARGET_MODULES, WEIGHTS, Manifest, base_digest
from buffer.config import ConfigError
from learner.chat import Chat
from learner.cores import dtype_of
from learner.packing import packed, packs

PLAIN_ATTENTION = 640
"""Tokens up to which attention on a CPU is computed in full: there torch's fused kernel is slow backwards."""
TOKENS_AT_ONCE = 512
"""In one forward pass without gradients: more would spend on attention what they save."""


class _Linear(lora.Linear):  # type: ignore[misc]
    """PEFT's LoRA layer, computed as vLLM serves it: fp32 weights are rounded to the base's dtype on use.

    PEFT widens every input to fp32 instead, which costs a training step a quarter of its time on a CPU.
    """

    held: tuple[Tensor, Tensor] | None = None
    """A and scaled B as they are used, while they do not change."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        y: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return y
        a_RD, scaled_KR = self.held or self.rounded()
        return y + linear(linear(x, a_RD), scaled_KR)

    def rounded(self) -> tuple[Tensor, Tensor]:
        """A and scaled B in the base's dtype."""
        dtype = self.base_layer.weight.dtype
        a_RD, b_KR = self.lora_A["default"].weight, self.lora_B["default"].weight
        return a_RD.to(dtype), (b_KR * self.scaling["default"]).to(dtype)


class Model:
    """A base model with one trainable LoRA adapter, on one device."""

    def __init__(self, base: PreTrainedModel, chat: Chat, *, rank: int, alpha: int, digest: str) -> None:
        """Put a new adapter into `base`. `digest` is the SHA-256 that releases name their base by."""
        base.config.use_cache = True
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=list(TARGET_MODULES),
            task_type="CAUSAL_LM",
        )
        config._register_custom_module({nn.Linear: _Linear})
        self.peft: PeftModel = get_peft_model(base, config, autocast_adapter_dtype=True)
        self.peft.eval()
        self.chat = chat
        self.device = base.device
        self.rank, self.alpha = rank, alpha
        self.digest = digest
        self._fresh = self.adapter_state()

    @classmethod
    def load(cls, directory: Path, *, rank: int, alpha: int, device: str = "cpu") -> Self:
        """Read tokenizer and weights from `directory`, in the dtype that `device` computes in.

        Raises `ConfigError` for a model of a kind that cannot be trained here.
        """
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        base = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype_of(device), use_safetensors=True, trust_remote_code=False
        ).to(device)
        chat, digest = Chat.of(tokenizer, _stops(base)), base_digest(directory)
        try:
            model = cls(base, chat, rank=rank, alpha=alpha, digest=digest)
            model.check()
        except (AttributeError, ValueError) as error:
            raise ConfigError(
                f"the learner cannot train {directory.name} ({base.config.model_type}): {error}",
                "serve a model of another family: of Llama's and Qwen's shape they can be trained",
            ) from error
        return model

    # --- the adapter ---------------------------------------------------------------------------------

    @property
    def head_VD(self) -> Tensor:
        """The frozen language-model head, `[vocabulary, hidden]`."""
        head = self.peft.get_base_model().lm_head.weight
        return head.detach()  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """What states and logits are computed in."""
        return self.head_VD.dtype

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights (fp32) by name, in a fixed order."""
        return {name: p for name, p in sorted(self.peft.named_parameters()) if p.requires_grad}

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the adapter's tensors under PEFT's names."""
        state = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """Put an adapter's tensors in place of the present ones. Raises `ValueError` if they do not fit."""
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in self._fresh.items()}:
            raise ValueError(f"the adapter's tensors are not those of this model at rank {self.rank}")
        set_peft_model_state_dict(self.peft, dict(state))

    def reset_adapter(self, seed: int, coordinates: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """A new adapter that changes nothing yet: A is drawn from `seed` (Kaiming uniform), in `coordinates`
        by layer where there are such, and B is zero."""
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for name, tensor in sorted(self._fresh.items()):
            if ".lora_A." in name:
                bound = tensor.shape[1] ** -0.5
                drawn = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
                layer = name.partition(".lora_A.")[0]
                state[name] = coordinates[layer](drawn.to(self.device)) if layer in coordinates else drawn
            else:
                state[name] = torch.zeros(tensor.shape)
        self.load_adapter(state)

    def load_adapter_file(self, directory: Path) -> None:
        """Load a published adapter, also one that was trained with another alpha. Raises `ValueError`."""
        if Manifest.model_validate_json((directory / MANIFEST).read_bytes()).base != self.digest:
            raise ValueError(
                f"policy {directory.name} was trained on another base model: set `model` back, or promote"
                " policy 0"
            )
        theirs = json.loads((directory / CONFIG).read_bytes())
        if theirs["r"] != self.rank:
            raise ValueError(
                f"policy {directory.name} has rank {theirs['r']}, not {self.rank}:"
                f" set `rank` in [learner] back to {theirs['r']}, or promote policy 0"
            )
        state = load_file(directory / WEIGHTS)
        scale = theirs["lora_alpha"] / self.alpha
        self.load_adapter({n: t * scale if ".lora_B." in n else t for n, t in state.items()})

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within this context the model is the base: the adapter is off."""
        with self.peft.disable_adapter():
            yield

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Within this context the adapter's weights stay as they are: each layer rounds them once."""
        layers = [layer for _, layer in self._adapted()]
        for layer in layers:
            layer.held = layer.rounded()
        try:
            yield
        finally:
            for layer in layers:
                layer.held = None

    def _adapted(self) -> Iterator[tuple[str, _Linear]]:
        """The layers with an adapter, by name."""
        return ((name, layer) for name, layer in self.peft.named_modules() if isinstance(layer, _Linear))

    @contextmanager
    def holding(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this context the adapter is another one: no gradient must be pending."""
        present = self.adapter_state()
        self.load_adapter(state)
        try:
            yield
        finally:
            self.load_adapter(present)

    @torch.no_grad()
    def check(self) -> None:
        """Raises `ValueError` where the model computes otherwise than we do: its logits are more than head
        times states (scaled, or capped), or what one row computes shows in another that is packed with it."""
        base = self.peft.get_base_model()
        attention = base.config._attn_implementation
        rows = [[5, 9, 11, 50, 60, 70, 80], [5, 9, 11, 90, 100, 110]]
        together = self.states(rows, [[0]] * 2)
        for row, packed_1D in zip(rows, together, strict=True):
            (alone_1D,) = self.states([row], [[0]])
            logits_V = self.peft(input_ids=torch.tensor([row], device=self.device)).logits[0, -1]
            if _gap(alone_1D[0] @ self.head_VD.T, logits_V) > 0.02:
                raise ValueError("its logits are not its head times its last states")
            if _gap(packed_1D[0], alone_1D[0]) > 0.1:
                raise ValueError("its layers mix rows that are computed together")
        base.set_attn_implementation(attention)  # as it was loaded

    @property
    def window(self) -> int | None:
        """Tokens that some layer's attention reaches back, where that is not all."""
        config = self.peft.get_base_model().config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None

    # --- forward -------------------------------------------------------------------------------------

    def hidden(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Hidden states that predict each completion, in one pass: one `[len(completion), D]` tensor a row.

        State k of a row is that of the position before completion token k.
        """
        states_TD, places, _ = self._forward([[*p, *c] for p, c in zip(prompts, completions, strict=True)])
        return [
            states_TD[places_L[len(p) - 1 : len(p) + len(c) - 1]]
            for places_L, p, c in zip(places, prompts, completions, strict=True)
        ]

    @torch.no_grad()
    def states(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[Tensor]:
        """As `hidden`, for any number of rows and without gradients."""
        rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        found: dict[int, Tensor] = {}
        for part in packs(rows, TOKENS_AT_ONCE):
            states = self.hidden([prompts[i] for i in part], [completions[i] for i in part])
            found.update(zip(part, states, strict=True))
        return [found[i] for i in range(len(rows))]

    def _forward(
        self, rows: Sequence[Sequence[int]], *, use_cache: bool = False
    ) -> tuple[Tensor, list[Tensor], Any]:
        """States of all rows' tokens `[T, D]`, where each row's are, and the keys and values if wanted."""
        pack = packed(rows)
        mask = pack.mask(self.dtype)
        result = self._body(len(pack.ids_T))(
            input_ids=pack.ids_T[None].to(self.device),
            position_ids=pack.positions_T[None].to(self.device),
            attention_mask=mask if mask is None else mask.to(self.device),
            use_cache=use_cache,
        )
        return result.last_hidden_state[0], [p.to(self.device) for p in pack.places], result.past_key_values

    def _body(self, tokens: int) -> nn.Module:
        """All below the head, with the attention for rows of up to so many tokens.

        Set before every use: what was computed earlier must not decide how this is computed.
        """
        base = self.peft.get_base_model()
        plain = self.device.type == "cpu" and tokens <= PLAIN_ATTENTION
        if base.config._attn_implementation != (wanted := "eager" if plain else "sdpa"):
            base.set_attn_implementation(wanted)
        return base.model  # type: ignore[no-any-return]

    @torch.no_grad()
    def layer_inputs(self, rows: Sequence[Sequence[int]], most: int) -> dict[tuple[str, ...], Tensor]:
        """What each adapted layer reads at some `most` tokens, evenly spread over all rows: `[tokens, D]`, by
        the names of the layers that read the same."""
        every = max(1, sum(map(len, rows)) // most)
        read: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0][0]}))
            for name, layer in self._adapted()
        ]
        inputs: dict[tuple[str, ...], list[Tensor]] = {}
        for part in packs(rows, TOKENS_AT_ONCE):
            _, places, _ = self._forward([rows[i] for i in part])
            readers: dict[int, list[str]] = {}
            for name, x_TD in read.items():
                readers.setdefault(x_TD.data_ptr(), []).append(name)
            chosen = torch.cat(places)[::every]
            for names in readers.values():
                inputs.setdefault(tuple(names), []).append(read[names[0]][chosen])
        for hook in hooks:
            hook.remove()
        return {names: torch.cat(parts) for names, parts in inputs.items()}

    # --- generation ----------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        batch: int = 32,
    ) -> list[list[int]]:
        """Completions' token ids, up to and with the first that stops the model. Temperature 0 is greedy;
        `max_tokens` may be one for each row.

        Sampling draws from a generator seeded by `seed` and the row's index alone.
        """
        completions: list[list[int]] = [[] for _ in prompts]
        most = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with self._unchanged():
            for first in range(0, len(by_length), batch):
                rows = by_length[first : first + batch]
                generators = [_generator(seed, row) for row in rows]
                made = self._decode_batch(
                    [prompts[r] for r in rows], [most[r] for r in rows], temperature, generators
                )
                for row, ids in zip(rows, made, strict=True):
                    completions[row] = ids
        return completions

    def _decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> list[list[int]]:
        """All at once; a row that is done is dropped when half of those computed are."""
        out: list[list[int]] = [[] for _ in prompts]

        def done(b: int) -> bool:
            return self.chat.ended(out[b]) or len(out[b]) == most[b]

        live = list(range(len(prompts)))
        logits_BV, cache, mask_BT = self._prefill(prompts)
        while True:
            next_B = _choose(logits_BV, temperature, [generators[b] for b in live])
            for b, token in zip(live, next_B.tolist(), strict=True):
                if not done(b):
                    out[b].append(token)
            unfinished = [i for i, b in enumerate(live) if not done(b)]
            if not unfinished:
                return out
            if 2 * len(unfinished) <= len(live):
                kept = torch.tensor(unfinished)
                cache.batch_select_indices(kept.to(self.device))
                live, next_B, mask_BT = [live[i] for i in unfinished], next_B[kept], mask_BT[kept]
            mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
            result = self._body(mask_BT.shape[1])(
                input_ids=next_B[:, None].to(self.device),
                attention_mask=mask_BT.to(self.device),
                position_ids=(mask_BT.sum(-1, keepdim=True) - 1).to(self.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache = result.past_key_values
            logits_BV = self._logits(result.last_hidden_state[:, -1])

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
        """What decoding starts from: each prompt's next logits `[B, V]`, the keys and values of all, padded
        on the left, and the mask `[B, T]` of what is no padding."""
        longest = max(map(len, prompts))
        mask_BT = torch.stack([torch.arange(longest) >= longest - len(prompt) for prompt in prompts]).long()
        last: dict[int, Tensor] = {}
        kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for part in packs(prompts, TOKENS_AT_ONCE):
            states_TD, places, cache = self._forward([prompts[i] for i in part], use_cache=True)
            for i, places_L in zip(part, places, strict=True):
                last[i] = states_TD[places_L[-1]]
                padded_T = nn.functional.pad(places_L, (longest - len(places_L), 0))
                kept[i] = [
                    (layer.keys[0][:, padded_T], layer.values[0][:, padded_T]) for layer in cache.layers
                ]
        rows = range(len(prompts))
        layers = [
            tuple(torch.stack([kept[i][depth][side] for i in rows]) for side in (0, 1))
            for depth in range(len(kept[0]))
        ]
        return self._logits(torch.stack([last[i] for i in rows])), DynamicCache(layers), mask_BT

    def _logits(self, states_BD: Tensor) -> Tensor:
        return (states_BD @ self.head_VD.T).float().cpu()


def _stops(base: PreTrainedModel) -> list[int]:
    """The tokens that a model stops at, in the file where vLLM reads them, too."""
    ids = base.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """How far ours is from theirs, relative to the length of theirs."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _generator(seed: int, row: int) -> torch.Generator:
    mixed = random.Random(f"{seed} {row}").getrandbits(63)  # noqa: S311 - reproducible, not secret
    return torch.Generator().manual_seed(mixed)


def _choose(logits_BV: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    p_BV = (logits_BV / temperature).softmax(-1)
    return torch.cat([torch.multinomial(p, 1, generator=g) for p, g in zip(p_BV, generators, strict=True)])
