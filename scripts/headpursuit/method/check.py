"""The check of every loaded model: its heads are where the code believes them to be."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headpursuit.method.decoder import Decoder, collected, parameter_of, scaled_heads
from headpursuit.run.files import UserError


class Passed(NamedTuple):
    """What passed a layer's attention: what its projection read, the frozen scale behind it, the
    residual stream before the attention, what is added to it, and the stream behind that."""

    z: Tensor
    scale: Tensor | None
    before: Tensor
    added: Tensor
    after: Tensor


@torch.inference_mode()
def self_check(decoder: Decoder) -> None:
    """Prove on a short input that heads are where the code believes them to be.

    In every layer, what the attention adds must turn the residual stream before it into the
    stream behind it, bit by bit, and the heads' writes and the bias must sum to it. The logits
    must be what the code makes of the final hidden states, and scaling a head must multiply its
    slice of what the projection reads and nothing else, both bit by bit.

    Raises:
        UserError: naming what does not hold.
    """
    vocabulary = decoder.model.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(8, device=decoder.device)[None] * 97 + 5) % vocabulary
    logits, passed = _watch(decoder, ids)
    failures = [fault for i, own in enumerate(passed) if (fault := _fault(decoder, i, own))]
    if not failures:
        final = decoder.model.base_model(ids, use_cache=False).last_hidden_state
        if not torch.equal(decoder.logits(final), logits):
            failures.append("the logits are not the final hidden states' by the unembedding")
        failures += _wrong_edits(decoder, passed)
    if failures:
        listed = "; ".join(failures[:3]) + ("; and others" if len(failures) > 3 else "")
        kind = decoder.model.config.model_type
        raise UserError(f"The self-check of this {kind} model failed: {listed}.")


def _watch(decoder: Decoder, ids: Tensor) -> tuple[Tensor, list[Passed]]:
    """Return the logits of token ids, and what passed each layer."""

    def read(layer: int, args: tuple, output: Any) -> Any:
        return args[0]

    def made(layer: int, args: tuple, output: Any) -> Any:
        return output[0] if isinstance(output, tuple) else output

    def scale(layer: int, args: tuple, output: Tensor) -> Tensor | None:
        return decoder.frozen_scale(layer, output)

    with (
        collected(decoder.projections, read) as z,
        collected(decoder.projections, scale) as scales,
        collected(decoder.layers, read) as before,
        collected(decoder.post_norms or decoder.attentions, made) as added,
        collected(decoder.next_norms, read) as after,
    ):
        logits = decoder.model(ids, use_cache=False).logits
    return logits, [
        Passed(z[i], scales[i], before[i], added[i], after[i]) for i in range(len(decoder.layers))
    ]


def _fault(decoder: Decoder, layer: int, passed: Passed) -> str | None:
    """Return what does not hold of a layer, if anything."""
    z, scale, before, added, after = passed
    shape = decoder.matrix(layer).shape
    wanted = added.shape[-1], decoder.n_heads * decoder.head_dim
    if shape != wanted:
        return f"layer {layer}'s projection is {tuple(shape)} instead of {wanted}"
    if not added.isfinite().all():
        dtype = str(added.dtype).removeprefix("torch.")
        return f"layer {layer}'s attention gives values that are not finite in {dtype}"
    if not torch.equal(before + added, after):
        return f"layer {layer}'s attention gives something else than is added"
    by_head = z.float().unflatten(-1, (decoder.n_heads, decoder.head_dim))
    total = torch.einsum("bphk,hdk->bpd", by_head, decoder.layer_columns(layer))
    if (bias := parameter_of(decoder.projections[layer], "bias")) is not None:
        gain = decoder.post_gain(layer)
        total += bias.float() * (1 if gain is None else gain)
    if scale is not None:
        total *= scale[..., None]
    # A product has been rounded to the number format; sums of thousands of terms, to float32's.
    relative = max(4 * torch.finfo(added.dtype).eps, 1e-4)
    if not (total - added.float()).norm() <= relative * added.float().norm():
        return f"the heads of layer {layer} do not sum to what it adds"
    return None


def _wrong_edits(decoder: Decoder, passed: list[Passed]) -> Iterator[str]:
    """Yield, of each layer, the head that is not scaled where it is to be."""
    for layer, own in enumerate(passed):
        expected = own.z.unflatten(-1, (decoder.n_heads, decoder.head_dim)).clone()
        head = int(expected.float().square().sum((0, 1, 3)).argmax())
        expected[..., head, :] *= -1
        with (
            scaled_heads(decoder, [(layer, head)], -1.0),
            collected(decoder.projections, lambda layer, args, output: args[0], [layer]) as read,
        ):
            decoder.projections[layer](own.z)
        if not torch.equal(read[layer], expected.flatten(-2)):
            yield f"scaling L{layer}.H{head} does not scale what it writes"
