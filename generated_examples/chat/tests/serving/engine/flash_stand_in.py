"""Flash attention on a processor, for tests: torch has `varlen_attn` on GPUs alone."""

import torch
from torch import Tensor
from torch.nn import functional


def lengths_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch documents of `varlen_attn`, sequence by sequence."""
    left, right = window_size
    assert right == 0
    outputs = []
    for q_start, q_end, k_start, k_end in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        q, k, v = query[q_start:q_end], key[k_start:k_end], value[k_start:k_end]
        assert len(q) <= max_q
        assert len(k) <= max_k
        # The last query sees all keys.
        place = torch.arange(len(q))[:, None] + len(k) - len(q)
        seen = (torch.arange(len(k)) <= place) & (
            torch.arange(len(k)) >= (place - left if left >= 0 else 0)
        )
        heads = [each.transpose(0, 1) for each in (q, k, v)]
        output = functional.scaled_dot_product_attention(
            *heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)
