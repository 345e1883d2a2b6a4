"""What an adapter brings whole, put into the model itself: embeddings, a head, norms, new tokens' rows."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.lora.rules import Rules
from localgemma_cli.backends.pytorch.lora.tensor_names import Contents, unfit, unusable
from localgemma_cli.models.safetensors_file import EMBEDDING, HEAD


def put_in(model: PreTrainedModel, contents: Contents, rules: Rules, folder: Path, *, tied: bool) -> None:
    """`tied`: the adapter keeps the head the embedding, where it is that in the base."""
    _check_kept(model, contents, rules, folder)
    whole = dict(contents.whole)
    both = {EMBEDDING, HEAD}
    if (
        is_tied(model)
        and not tied
        and any(rules.keeps(_trained(contents, name)) for name in both & whole.keys())
    ):
        separate_head(model)  # peft keeps a copy of one, and the other is the base's
        if HEAD not in whole and EMBEDDING in contents.beneath:
            whole[HEAD] = contents.beneath[EMBEDDING]
    _put_ends(model, {name: whole.pop(name) for name in both & whole.keys()}, folder)
    for name, tensor in whole.items():
        _put(model, name, tensor, folder)
    for module, rows in contents.rows.items():
        _put_rows(model, contents, rules, folder, module, rows)


def is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def separate_head(model: PreTrainedModel) -> None:
    """A head of its own where it was the embedding: one of the two is about to change alone."""
    if is_tied(model):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _trained(contents: Contents, name: str) -> str:
    return contents.name_in_training(name.removesuffix(".weight"))


def _check_kept(model: PreTrainedModel, contents: Contents, rules: Rules, folder: Path) -> None:
    for name, _ in model.named_parameters(remove_duplicate=False):
        module = name.rpartition(".")[0]
        parts = module.split(".")
        owners = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        if (
            any(rules.keeps(contents.name_in_training(owner)) for owner in owners)
            and name not in contents.whole
        ):
            raise unusable(folder, f"it lacks {name}, which its adapter_config.json says it brings.")


def _put_ends(model: PreTrainedModel, new: dict[str, torch.Tensor], folder: Path) -> None:
    """The embedding and the head, of as many tokens as the adapter was trained with."""
    if not new:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if is_tied(model):
        one, other = (new.get(name, next(iter(new.values()))) for name in (EMBEDDING, HEAD))
        if not torch.equal(one, other):
            raise unusable(folder, "its head and its embedding differ, and in its base they are one.")
        weight = _like(embedding.weight, one, EMBEDDING, folder)
        embedding.weight = head.weight = weight
    else:
        for name, module in ((EMBEDDING, embedding), (HEAD, head)):
            if name in new:
                module.weight = _like(module.weight, new[name], name, folder)
    rows = embedding.weight.shape[0]
    if head.weight.shape[0] != rows:
        raise unusable(
            folder, f"it brings {rows} embeddings, and its head knows {head.weight.shape[0]} tokens."
        )
    embedding.num_embeddings = head.out_features = model.config.vocab_size = model.vocab_size = rows


def _like(
    old: nn.Parameter, new: torch.Tensor, name: str, folder: Path, *, rows: bool = True
) -> nn.Parameter:
    """As the old one is kept; `rows`: there may be more or fewer of them."""
    if not old.is_floating_point():
        raise unusable(folder, f"it brings {name} whole, which its base has in 4 or 8 bits.")
    if new.shape[1:] != old.shape[1:] or new.dim() != old.dim() or (not rows and new.shape != old.shape):
        raise unfit(folder, f"{name} is {tuple(new.shape)}, not {tuple(old.shape)}.")
    return nn.Parameter(new.to(old.device, old.dtype), requires_grad=False)


def _put(model: PreTrainedModel, name: str, tensor: torch.Tensor, folder: Path) -> None:
    module, _, leaf = name.rpartition(".")
    try:
        owner, old = model.get_submodule(module), model.get_parameter(name)
    except AttributeError:
        raise unfit(folder, f"it changes {name}, which this base has not.") from None
    setattr(owner, leaf, _like(old, tensor, name, folder, rows=False))


def _put_rows(
    model: PreTrainedModel, contents: Contents, rules: Rules, folder: Path, name: str, rows: torch.Tensor
) -> None:
    """The rows of single tokens, in the embedding; of a tied head they are the same."""
    ends = {name.removesuffix(".weight") for name in (EMBEDDING, HEAD)}
    if ends & contents.lora.keys() or any(rules.keeps(contents.name_in_training(end)) for end in ends):
        raise unusable(folder, "it changes single tokens, and the whole embedding or head besides.")
    module, indices = model.get_submodule(name), rules.tokens(contents.name_in_training(name))
    first = contents.rows.get(EMBEDDING.removesuffix(".weight"))
    if is_tied(model) and f"{name}.weight" == HEAD and first is not None:
        if not torch.equal(first, rows):
            raise unusable(folder, "its head and its embedding differ, and in its base they are one.")
        return
    old = module.weight
    if indices is None or len(indices) != rows.shape[0]:
        raise unusable(
            folder, f"it has {rows.shape[0]} new rows of {name}, and does not say for which tokens."
        )
    if indices and not 0 <= min(indices) <= max(indices) < old.shape[0]:
        raise unfit(folder, f"it changes token {max(indices)}, and its base has {old.shape[0]}.")
    where = torch.tensor(indices, device=old.device)
    like = _like(old, rows, name, folder)
    new = nn.Parameter(old.detach().index_copy(0, where, like), requires_grad=False)
    if is_tied(model):
        model.get_input_embeddings().weight = model.get_output_embeddings().weight = new
    else:
        module.weight = new
