"""Replaces weights of the model by full ones in an adapter: embeddings, head, norms, rows of new tokens."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.lora.adapter_weights import AdapterWeights, unfit, unusable
from localgemma_cli.backends.pytorch.lora.rules import Rules
from localgemma_cli.models.safetensors_file import EMBEDDING, HEAD


def replace_weights(
    model: PreTrainedModel, weights: AdapterWeights, rules: Rules, folder: Path, *, tied: bool
) -> None:
    """Replace whole matrices and single rows.

    `tied`: a head that is tied to the embedding stays so, as the adapter's config says.
    """
    _check_saved(model, weights, rules, folder)
    whole = dict(weights.whole)
    both = {EMBEDDING, HEAD}
    if (
        has_tied_head(model)
        and not tied
        and any(rules.keeps(_trained_name(weights, name)) for name in both & whole.keys())
    ):
        untie_head(model)  # peft replaces one of them; the other stays the base model's
        if HEAD not in whole and EMBEDDING in weights.beneath:
            whole[HEAD] = weights.beneath[EMBEDDING]
    _replace_ends(model, {name: whole.pop(name) for name in both & whole.keys()}, folder)
    for name, tensor in whole.items():
        _replace(model, name, tensor, folder)
    for module, rows in weights.rows.items():
        _replace_rows(model, weights, rules, folder, module, rows)


def has_tied_head(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untie_head(model: PreTrainedModel) -> None:
    """Give a tied head a copy of the embedding's weight, because only one of the two changes."""
    if has_tied_head(model):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _trained_name(weights: AdapterWeights, name: str) -> str:
    return weights.name_in_training(name.removesuffix(".weight"))


def _check_saved(model: PreTrainedModel, weights: AdapterWeights, rules: Rules, folder: Path) -> None:
    for name, _ in model.named_parameters(remove_duplicate=False):
        module = name.rpartition(".")[0]
        parts = module.split(".")
        owners = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        if (
            any(rules.keeps(weights.name_in_training(owner)) for owner in owners)
            and name not in weights.whole
        ):
            raise unusable(
                folder, f"it lacks {name}, which is in modules_to_save of its adapter_config.json."
            )


def _replace_ends(model: PreTrainedModel, new: dict[str, torch.Tensor], folder: Path) -> None:
    """Replace the embedding and the head; the number of tokens may change."""
    if not new:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if has_tied_head(model):
        one, other = (new.get(name, next(iter(new.values()))) for name in (EMBEDDING, HEAD))
        if not torch.equal(one, other):
            raise unusable(
                folder, "its head and its embedding differ, but its base model has one matrix for both."
            )
        weight = _convert(embedding.weight, one, EMBEDDING, folder)
        embedding.weight = head.weight = weight
    else:
        for name, module in ((EMBEDDING, embedding), (HEAD, head)):
            if name in new:
                module.weight = _convert(module.weight, new[name], name, folder)
    rows = embedding.weight.shape[0]
    if head.weight.shape[0] != rows:
        raise unusable(folder, f"its embedding has {rows} tokens, but its head has {head.weight.shape[0]}.")
    embedding.num_embeddings = head.out_features = model.config.vocab_size = model.vocab_size = rows


def _convert(
    old: nn.Parameter, new: torch.Tensor, name: str, folder: Path, *, rows: bool = True
) -> nn.Parameter:
    """`new` on the device and in the dtype of `old`; `rows`: the number of rows may differ."""
    if not old.is_floating_point():
        raise unusable(folder, f"it replaces {name}, which its base model has in 4 or 8 bits.")
    if new.shape[1:] != old.shape[1:] or new.dim() != old.dim() or (not rows and new.shape != old.shape):
        raise unfit(folder, f"{name} has shape {tuple(new.shape)}, expected {tuple(old.shape)}.")
    return nn.Parameter(new.to(old.device, old.dtype), requires_grad=False)


def _replace(model: PreTrainedModel, name: str, tensor: torch.Tensor, folder: Path) -> None:
    module, _, leaf = name.rpartition(".")
    try:
        owner, old = model.get_submodule(module), model.get_parameter(name)
    except AttributeError:
        raise unfit(folder, f"it changes {name}, which this model does not have.") from None
    setattr(owner, leaf, _convert(old, tensor, name, folder, rows=False))


def _replace_rows(
    model: PreTrainedModel, weights: AdapterWeights, rules: Rules, folder: Path, name: str, rows: torch.Tensor
) -> None:
    """Replace the rows of single tokens in the embedding or the head."""
    ends = {name.removesuffix(".weight") for name in (EMBEDDING, HEAD)}
    if ends & weights.lora.keys() or any(rules.keeps(weights.name_in_training(end)) for end in ends):
        raise unusable(folder, "it changes single tokens and also the whole embedding or head.")
    module, indices = model.get_submodule(name), rules.tokens(weights.name_in_training(name))
    first = weights.rows.get(EMBEDDING.removesuffix(".weight"))
    if has_tied_head(model) and f"{name}.weight" == HEAD and first is not None:
        if not torch.equal(first, rows):
            raise unusable(
                folder, "its head and its embedding differ, but its base model has one matrix for both."
            )
        return
    old = module.weight
    if indices is None or len(indices) != rows.shape[0]:
        raise unusable(
            folder, f"it has {rows.shape[0]} new rows of {name} but not their trainable_token_indices."
        )
    if indices and not 0 <= min(indices) <= max(indices) < old.shape[0]:
        raise unfit(
            folder, f"it changes token {max(indices)}, but this model has only {old.shape[0]} tokens."
        )
    where = torch.tensor(indices, device=old.device)
    converted = _convert(old, rows, name, folder)
    new = nn.Parameter(old.detach().index_copy(0, where, converted), requires_grad=False)
    if has_tied_head(model):
        model.get_input_embeddings().weight = model.get_output_embeddings().weight = new
    else:
        module.weight = new
