"""Configurations of model families, tiny: what the batch can carry, and what it cannot.

A key is a `model_type`, with what is special about the row behind it.
"""

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
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
SPARSE: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    **EXPERTS,
}
MLA: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    **SPARSE,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 256,
    "factor": 8.0,
}

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
SLIDING: dict[str, Any] = {
    "head_dim": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
"""A window that is smaller than most prompts"""
SHARED_KV: dict[str, Any] = {
    "num_hidden_layers": 5,
    "num_kv_shared_layers": 2,
    "layer_types": [*SLIDING["layer_types"], "sliding_attention", "full_attention"],
}
PER_LAYER_INPUT: dict[str, Any] = {
    "vocab_size_per_layer_input": 300,
    "hidden_size_per_layer_input": 8,
}
GEMMA4: dict[str, Any] = {
    **SLIDING,
    **PER_LAYER_INPUT,
    "global_head_dim": 32,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
}
GPT: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 2048}
MULTI_HEAD: dict[str, Any] = {"num_key_value_heads": 4}
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
}
LINEAR: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}

BATCHED: dict[str, dict[str, Any]] = {
    "afmoe": {
        **SLIDING,
        "num_local_experts": 4,
        "num_experts": 4,
        "num_dense_layers": 1,
        **EXPERTS,
    },
    "apertus": {},
    "arcee": {},
    "biogpt": MULTI_HEAD,
    "bitnet": {},
    "cohere": {},
    "cohere2": SLIDING,
    "cohere2_moe": {**SLIDING, "num_experts": 4, **EXPERTS},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 2048,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 32,
            "hidden_size": 64,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "dots1": SPARSE,
    "ernie4_5": {"head_dim": 16},
    "ernie4_5_moe": {
        "head_dim": 16,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
    },
    "exaone4": {"head_dim": 16, "sliding_window": 32, "sliding_window_pattern": 3},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {**SLIDING, "query_pre_attn_scalar": 16},
    "gemma3n_text": {
        **SLIDING,
        **SHARED_KV,
        **PER_LAYER_INPUT,
        "laurel_rank": 8,
        "activation_sparsity_pattern": None,
        "intermediate_size": [128] * 5,
    },
    "gemma4_text": GEMMA4,
    "gemma4_text shared": {**GEMMA4, **SHARED_KV},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "glm4_moe": {"head_dim": 16, "partial_rotary_factor": 0.5, **SPARSE},
    "gpt2": {**GPT, **MULTI_HEAD},
    "gpt_bigcode": GPT,
    "gpt_neox": MULTI_HEAD,
    "gpt_oss": {
        **SLIDING,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": YARN,
    },
    "granite": {
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "embedding_multiplier": 2.0,
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid attention": {
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 64,
        "layer_types": ["attention"] * 3,
        "position_embedding_type": "rope",
    },
    "granitemoeshared": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
    },
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "moe_topk": 2,
        "num_shared_expert": 1,
        "moe_intermediate_size": 32,
    },
    "llama": {},
    "llama bias": {**MULTI_HEAD, "attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "llama linear": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    },
    "llama llama3": {"tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "llama yarn": {"rope_parameters": YARN},
    "minimax_m2": {
        "head_dim": 16,
        "rotary_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "ministral3": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "mistral sliding": {"head_dim": 16, "sliding_window": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "nanochat": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 32},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {**MULTI_HEAD, "word_embed_proj_dim": 64, "ffn_dim": 128},
    "persimmon": MULTI_HEAD,
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "phi3 sliding": {"sliding_window": 32},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen2 sliding": {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32, **EXPERTS},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, **EXPERTS},
    "seed_oss": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 1, 0], "pad_token_id": 0},
    "starcoder2": {"sliding_window": 32},
    "vaultgemma": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
        "final_logit_softcapping": 2.0,
    },
}

# transformers 5.24 has the model's own code write to the pages of the batch. Before, the attention
# did so, which some of these do not tell what it needs, and multi-head latent attention wrote more
# than it does to a cache of its own.
BATCHED_SINCE_5_24: dict[str, dict[str, Any]] = {
    "codegen": {**GPT, "n_ctx": 2048, "rotary_dim": 8},
    "deepseek_v2": {**MLA, "topk_method": "greedy"},
    "deepseek_v3": MLA,
    "diffllama": {},
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon multi-query": {
        "alibi": False,
        "new_decoder_architecture": False,
        "multi_query": True,
        "num_key_value_heads": None,
    },
    "glm4_moe_lite": MLA,
    "gptj": {**GPT, "rotary_dim": 8},
    "jetmoe": {"kv_channels": 16, "num_local_experts": 4},
    "minicpm3": MLA,
    "mistral4": MLA,
    "nemotron": {},
    "stablelm": {},
    "stablelm parallel": {
        **MULTI_HEAD,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "youtu": MLA,
}

ONE_AT_A_TIME: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "bloom": {"n_head": 4, "n_layer": 3},
    "deepseek_v32": MLA,
    "deepseek_v4": {"head_dim": 16},
    "doge": {},
    "falcon alibi": {"alibi": True, "new_decoder_architecture": False},
    "falcon_h1": {**MAMBA2, "head_dim": 16, "mamba_d_ssm": 128},
    "falcon_mamba": {"state_size": 4},
    "glm_moe_dsa": MLA,
    "gpt_neo": {
        "num_hidden_layers": 2,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 32,
    },
    "granitemoehybrid": {
        **MAMBA2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
        "layer_types": ["mamba", "mamba", "attention"],
    },
    "jamba": {
        "mamba_d_state": 8,
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {
        "layer_types": ["conv", "conv", "full_attention"],
        "conv_L_cache": 3,
        "block_multiple_of": 16,
    },
    "lfm2_moe": {
        "layer_types": ["conv", "conv", "full_attention"],
        "num_experts": 4,
        "num_dense_layers": 1,
        **EXPERTS,
    },
    "llama dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        "max_position_embeddings": 512,
    },
    "llama4_text": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 128,
        "attention_chunk_size": 64,
    },
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1},
    "minimax": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
    },
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 2048},
    "nemotron_h": {
        "head_dim": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "layers_block_type": ["mamba", "attention", "moe"],
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 32,
        **EXPERTS,
    },
    "phi3 longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
    "qwen3_5_moe_text": {
        **LINEAR,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        **EXPERTS,
    },
    "qwen3_5_text": LINEAR,
    "qwen3_next": {
        **LINEAR,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        **EXPERTS,
    },
    "recurrent_gemma": {
        "head_dim": 16,
        "lru_width": 64,
        "attention_window_size": 32,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 64},
    "xglm": {**MULTI_HEAD, "d_model": 64, "num_layers": 3, "attention_heads": 4, "ffn_dim": 128},
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
    "gemma3": {
        "text_config": {**SLIDING, "query_pre_attn_scalar": 16},
        "vision_config": VISION,
    },
    "gemma4": {
        "text_config": GEMMA4,
        "vision_config": None,
        "audio_config": None,
        "pad_token_id": 0,
    },
    "qwen2_vl": {
        "text_config": {"rope_parameters": MROPE},
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": 8,
        },
    },
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
    "llava pixtral": {
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

READ_IMAGES_ONE_AT_A_TIME: dict[str, dict[str, Any]] = {
    "qwen3_5": {"text_config": LINEAR, "vision_config": QWEN_VISION},
}

BATCHED |= READ_IMAGES
ONE_AT_A_TIME |= READ_IMAGES_ONE_AT_A_TIME
if Version(transformers.__version__) < Version("5.24"):
    ONE_AT_A_TIME |= BATCHED_SINCE_5_24
else:
    BATCHED |= BATCHED_SINCE_5_24
FAMILIES = BATCHED | ONE_AT_A_TIME


def auto_class(config: PreTrainedConfig) -> Any:
    writes_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if writes_text else AutoModelForImageTextToText


def sized(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a configuration, with SIZE where its text model is configured."""
    if "text_config" in options:
        return options | {"text_config": SIZE | options["text_config"]}
    return SIZE | options


def build(family: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random model whose attention matters: its weights are larger than those of a fresh one."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family.split()[0], **sized(FAMILIES[family] | options))
    model: PreTrainedModel = auto_class(config).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()
