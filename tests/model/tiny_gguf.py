"""A tiny Llama in a GGUF file, with any metadata."""

import tiny


def byte_vocabulary(writer):
    """Byte-level BPE with two merges, as the writers of GPT-2's kind have it."""
    vocabulary = tiny.tiny_tokenizer().vocab
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        [*sorted(vocabulary, key=vocabulary.get)[:254], "ab", "cd", "<s>", "<|endoftext|>"]
    )
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)


def piece_vocabulary(writer):
    """Pieces with scores, as SentencePiece has them: every letter, some words and their parts."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(128))]
    letters += ["▁", *map(chr, range(97, 123)), *map(chr, range(65, 91)), ".", ","]
    pieces = ["▁t", "he", "▁the", "re", "▁re", "la", "ti", "on", "tion", "lation", "▁relation"]
    tokens = letters + pieces
    tokens += [f"[{number}]" for number in range(258 - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-number) for number in range(len(tokens))])
    kinds = [2, 3, 3] + [6] * 128 + [1] * (len(tokens) - 131)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write_gguf(path, model, settings=lambda writer: None, vocabulary=byte_vocabulary):
    """A Llama as llama.cpp stores it: rows of q and k in the order of interleaved pairs.

    Args:
        path: of the file to write.
        model: a tiny Llama.
        settings: adds further metadata or tensors to the writer.
        vocabulary: adds the tokenizer.
    """
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary(writer)
    settings(writer)

    def interleaved(weight, heads):
        half = weight.shape[0] // heads // 2
        return weight.view(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", weights["lm_head.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:
                weight = interleaved(weight, heads[theirs])
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
