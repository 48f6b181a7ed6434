"""What makes an artifact load elsewhere: genai_config.json (onnxruntime-genai), inference_model.json (Foundry Local).

Fields of genai_config.json: onnxruntime-genai, src/config.h and src/config.cpp (it refuses fields it does not know).
inference_model.json: Microsoft Learn, "Compile Hugging Face models to run on Foundry Local".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeship.plan import Plan
from edgeship.tokenizer import SpecialTokens
from edgeship_runtime.acceptance import DATE_STRING
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import TemplateError

# Tokens by which onnxruntime-genai finds tool calls and thoughts in the output, in the models that have them.
MARKERS = {
    "bot_token_id": "<tool_call>",
    "eot_token_id": "</tool_call>",
    "bor_token_id": "<think>",
    "eor_token_id": "</think>",
}


def genai_config(
    plan: Plan, special: SpecialTokens, token_id: Callable[[str], int | None], model_file: str = "model.onnx"
) -> dict[str, Any]:
    """The contents of genai_config.json; `token_id` looks a token up in the tokenizer."""
    d = plan.decoder
    model: dict[str, Any] = {
        "bos_token_id": special.eos[0] if special.bos is None else special.bos,  # a number is required
        "context_length": plan.rope_positions,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": model_file,
            "head_size": d.head_dim,
            "hidden_size": d.hidden_size,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "num_attention_heads": d.heads,
            "num_hidden_layers": d.layers,
            "num_key_value_heads": d.kv_heads,
        },
        "eos_token_id": list(special.eos),
        "pad_token_id": special.eos[0] if special.pad is None else special.pad,
        "type": d.model_type,
        "vocab_size": d.vocab_size,
    }
    markers = {name: token_id(token) for name, token in MARKERS.items()}
    model |= {name: found for name, found in markers.items() if found is not None}
    return {"model": model, "search": _search(plan)}


def _search(plan: Plan) -> dict[str, Any]:
    sampling = plan.recipe.sampling
    return {
        "diversity_penalty": 0.0,
        "do_sample": sampling.temperature > 0,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": plan.recipe.context,  # also the size of the KV cache that is allocated
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": sampling.repetition_penalty,
        "temperature": sampling.temperature,
        "top_k": min(sampling.top_k, plan.decoder.vocab_size),  # more is refused
        "top_p": sampling.top_p,
    }


def inference_model(name: str, template: ChatTemplate | None) -> dict[str, Any]:
    """The contents of inference_model.json."""
    return {"Name": name, "PromptTemplate": {"assistant": "{Content}", "prompt": _prompt(template)}}


def _prompt(template: ChatTemplate | None) -> str:
    """One chat turn with {Content} where the user's text goes; just that where no template takes it."""
    if template is None:
        return "{Content}"
    try:
        return template.render([{"role": "user", "content": "{Content}"}], date_string=DATE_STRING)
    except TemplateError:
        return "{Content}"
