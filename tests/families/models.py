"""Configurations of model families, tiny: what the batch can carry, and what it cannot."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.modeling_utils import PreTrainedModel

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    **EXPERTS,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 256,
    "factor": 8.0,
}

BATCHED: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama yarn": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, **EXPERTS},
    "mistral": {"sliding_window": 32, "head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 32,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
    "olmo2": {},
    "cohere": {},
    "smollm3": {"no_rope_layers": [1, 1, 0], "pad_token_id": 0},
    "olmo3": {"sliding_window": 32},
}

# transformers 5.24 gives the pages of the batch to the model under the name of its own cache. The
# models that use this cache in a way of their own raise an error then.
BATCHED_BEFORE_5_24: dict[str, dict[str, Any]] = {
    "gpt_neox": {"num_key_value_heads": 4},
    "opt": {"num_key_value_heads": 4, "word_embed_proj_dim": 64, "ffn_dim": 128},
}

ONE_AT_A_TIME: dict[str, dict[str, Any]] = {
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "attn_logit_softcapping": 2.0,
    },
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
    "llama dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        "max_position_embeddings": 512,
    },
    "bloom": {"n_head": 4, "n_layer": 3},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 2048},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
    "deepseek_v2": {**MLA, "topk_method": "greedy"},
    "deepseek_v3": MLA,
    "glm4_moe_lite": MLA,
    "stablelm": {},
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 32,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "mamba": {"state_size": 4},
    "qwen3_next": {
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        **EXPERTS,
    },
}

# Models that read images too, and are served for text. `text_config` is completed by SIZE.
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "patch_size": 8,
    "fullatt_block_indexes": [1],
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PIXTRAL_VISION = {**VISION, "model_type": "pixtral", "head_dim": 16}
READ_IMAGES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"text_config": {"rope_parameters": MROPE}, "vision_config": QWEN_VISION},
    "qwen3_vl": {
        "text_config": {"head_dim": 16, "rope_parameters": MROPE},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
    },
    "glm4v": {
        "text_config": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
        "vision_config": QWEN_VISION,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        "vision_config": PIXTRAL_VISION,
        "image_token_index": 290,
    },
    "pixtral": {
        "model_type": "llava",
        "text_config": {"model_type": "mistral", "head_dim": 16},
        "vision_config": PIXTRAL_VISION,
        "image_token_index": 290,
    },
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": 290,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        "image_token_id": 290,
    },
}

BATCHED |= READ_IMAGES

if Version(transformers.__version__) < Version("5.24"):
    BATCHED |= BATCHED_BEFORE_5_24
else:
    ONE_AT_A_TIME |= BATCHED_BEFORE_5_24


def auto_class(name: str) -> Any:
    return AutoModelForImageTextToText if name in READ_IMAGES else AutoModelForCausalLM


def sized(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a configuration, with SIZE where its text model is configured."""
    rest = {k: v for k, v in options.items() if k != "model_type"}
    if "text_config" in rest:
        return rest | {"text_config": SIZE | rest["text_config"]}
    return SIZE | rest


def build(name: str, options: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """A random model whose attention matters: its weights are larger than those of a fresh one."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(options.get("model_type", name), **sized(options))
    model: PreTrainedModel = auto_class(name).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()
