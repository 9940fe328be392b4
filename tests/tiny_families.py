"""Tiny random models of many families, built from transformers' configurations."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

# 64 words, width 16, inner width 24, two blocks: small enough to count by hand.
_PLAIN: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 5,  # deeper than the language model
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_CLIP = {**_VISION, "model_type": "clip_vision_model", "projection_dim": 8}
_LLAMA = {"model_type": "llama"}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _PLAIN),
    "gpt2": ("GPT2Config", {**_GPT, **_ENDS, "n_inner": 24}),
    "opt": ("OPTConfig", {**_PLAIN, "ffn_dim": 24, "word_embed_proj_dim": 8}),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
        | {"time_step_rank": 4},
    ),
    "mixtral": ("MixtralConfig", {**_PLAIN, "num_local_experts": 4}),
    "granitemoe": ("GraniteMoeConfig", {**_PLAIN, "num_local_experts": 4}),
    "qwen2moe": (
        "Qwen2MoeConfig",
        {**_PLAIN, **_EXPERTS, "shared_expert_intermediate_size": 12},
    ),
    "qwen3moe": ("Qwen3MoeConfig", {**_PLAIN, **_EXPERTS, "head_dim": 8}),
    "gptoss": (
        "GptOssConfig",
        {**_PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
        | {"rope_parameters": None},
    ),
    "deepseek": (
        "DeepseekV3Config",
        {**_PLAIN, "n_routed_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
        | {"v_head_dim": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "llama4": (
        "Llama4TextConfig",
        {**_PLAIN, "num_local_experts": 4, "head_dim": 8, "interleave_moe_layer_step": 1}
        | {"intermediate_size_mlp": 24},
    ),
    "rwkv": ("RwkvConfig", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, **_ENDS}),
    "hrm": ("HrmTextConfig", {**_PLAIN, "head_dim": 8}),
    "jamba": (
        "JambaConfig",
        {**_PLAIN, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
    ),
    "gemma3": (
        "Gemma3Config",
        {"mm_tokens_per_image": 4, "image_token_index": 60, "vision_config": _VISION}
        | {"text_config": {**_PLAIN, "head_dim": 8, "sliding_window": 16}},
    ),
    "git": ("GitConfig", {**_PLAIN, "vision_config": _VISION}),
    "mistral": ("MistralConfig", {**_PLAIN, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", _PLAIN),
    "qwen3": ("Qwen3Config", {**_PLAIN, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_PLAIN, "head_dim": 8, "sliding_window": 16}),
    "gemma3text": ("Gemma3TextConfig", {**_PLAIN, "head_dim": 8, "sliding_window": 16}),
    "phi3": ("Phi3Config", _PLAIN),
    "olmo2": ("Olmo2Config", _PLAIN),
    "gptj": ("GPTJConfig", {**_GPT, **_ENDS, "n_inner": 24, "rotary_dim": 4}),
    "gptneox": ("GPTNeoXConfig", _PLAIN),
    "bloom": ("BloomConfig", {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "falcon": ("FalconConfig", {**_PLAIN, "new_decoder_architecture": False}),
    "mpt": ("MptConfig", {"vocab_size": 64, "d_model": 16, "n_heads": 2, "n_layers": 2}),
    "starcoder2": ("Starcoder2Config", _PLAIN),
    "mamba2": (
        "Mamba2Config",
        {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
        | {"num_heads": 4, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 8},
    ),
    "qwen3next": (
        "Qwen3NextConfig",
        {**_PLAIN, **_EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 12}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
        | {"linear_value_head_dim": 8, "full_attention_interval": 2},
    ),
    "llava": ("LlavaConfig", {"vision_config": _CLIP, "text_config": _PLAIN | _LLAMA}),
    "qwen2vl": (
        "Qwen2VLConfig",
        {
            "vision_config": {"depth": 5, "embed_dim": 8, "hidden_size": 16, "num_heads": 2}
            | {"patch_size": 4, "mlp_ratio": 2},
            "text_config": {**_PLAIN, "rope_parameters": _MROPE},
            "image_token_id": 60,
        },
    ),
    "llama4whole": (
        "Llama4Config",
        {
            "vision_config": {**_VISION, "vision_output_dim": 8, "projector_input_dim": 8}
            | {"projector_output_dim": 8, "pixel_shuffle_ratio": 0.5},
            "text_config": {**_PLAIN, "num_local_experts": 4, "head_dim": 8}
            | {"moe_layers": [], "intermediate_size_mlp": 24},
        },
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "text_config": {**_PLAIN, "model_type": "gemma", "head_dim": 8},
            "image_token_index": 60,
            "projection_dim": 16,
        },
    ),
    "idefics3": (
        "Idefics3Config",
        {"vision_config": _VISION, "text_config": _PLAIN | _LLAMA, "image_token_id": 60},
    ),
    "t5": ("T5Config", {"vocab_size": 64, "d_model": 16, "num_layers": 2, "num_heads": 2}),
}


def made_by(config: Any) -> Any:
    """transformers' class for a configuration: all of a model, its towers too."""
    shown = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return transformers.AutoModelForImageTextToText if shown else transformers.AutoModelForCausalLM


def tiny(family: str) -> nn.Module:
    """A causal language model of a family, with the same random weights each time."""
    name, fields = FAMILIES[family]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = made_by(config := getattr(transformers, name)(**fields)).from_config(config)
    finally:
        logging.set_verbosity(verbosity)
    return model.eval()
