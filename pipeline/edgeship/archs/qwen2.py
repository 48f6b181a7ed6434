"""Qwen2 and Qwen2.5 (Instruct, Coder, Math): Llama's blocks with biases on q, k and v."""

from __future__ import annotations

from edgeship.archs.base import Config, Decoder, read_rope


def read(config: Config) -> Decoder:
    """The decoder that a `qwen2` config.json describes; raises ArchitectureError at anything not known."""
    config.expect("hidden_act", ("silu",))
    config.expect("use_sliding_window", (False,), False)
    heads, hidden = config.positive("num_attention_heads"), config.positive("hidden_size")
    head_dim = config.positive("head_dim", hidden // heads)
    return Decoder(
        model_type="qwen2",
        vocab_size=config.positive("vocab_size"),
        hidden_size=hidden,
        layers=config.positive("num_hidden_layers"),
        heads=heads,
        kv_heads=config.positive("num_key_value_heads", heads),
        head_dim=head_dim,
        feed_forward=config.positive("intermediate_size"),
        norm_eps=config.get("rms_norm_eps", float),
        tied=config.get("tie_word_embeddings", bool, False),
        max_positions=config.positive("max_position_embeddings"),
        rope=read_rope(config, head_dim),
        qkv_bias=True,
    )
