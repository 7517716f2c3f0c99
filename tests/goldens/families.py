"""Writes the families' goldens: tiny, odd-sized models whose numbers come from `transformers`.

    pip install torch transformers safetensors
    python families.py [OUT] [MODEL…]

Each folder under `families/` holds `config.json` and `model.safetensors` as `transformers` saves them, and
`golden.safetensors`:

    tokens [B, T], logits [B, T, V], loss [1] (mean next-token cross-entropy, and what else the model's has),
    grad/<tensor> of a few tensors
    decode/tokens [P + S], decode/logits [S, V]: S cached steps after a prompt of P tokens

Each model is there for what its family hides: see `MODELS`. `config.old.json` is the same model in the spelling of
public hubs (`rope_theta`, `rope_scaling`, `torch_dtype`).
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

BATCH, LENGTH, PROMPT, STEPS = 2, 18, 7, 11
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 1000.0, **more}


def gpt2(**more):
    return "GPT2", dict(n_embd=24, n_head=6, n_layer=2, n_positions=64, vocab_size=38, n_inner=42) | more


def opt(**more):
    return "OPT", dict(hidden_size=24, num_attention_heads=6, num_hidden_layers=2, max_position_embeddings=64,
                       vocab_size=38, ffn_dim=42, dropout=0.0, pad_token_id=None, bos_token_id=0) | more


def neox(**more):
    return "GPTNeoX", dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=2, vocab_size=38,
                           max_position_embeddings=64, intermediate_size=42,
                           rope_parameters=PLAIN | {"partial_rotary_factor": 0.5}) | more


def like_llama(family, **more):
    sizes = dict(hidden_size=30, intermediate_size=42, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, vocab_size=38, max_position_embeddings=64, rope_parameters=PLAIN)
    return family, sizes | more


MODELS = {
    # Fused projections stored in × out, learned positions, GELU by tanh; tied.
    "gpt2": gpt2(),
    # A position offset of 2, norms before the blocks.
    "opt": opt(),
    # As opt-350m: norms after the blocks, no last norm, an embedding narrower than the model.
    "opt-post-norm": opt(do_layer_norm_before=False, word_embed_proj_dim=14),
    # Attention and MLP read one stream, query, key and value interleaved by head, half of each head rotated.
    "gpt_neox": neox(),
    # One after the other; a quarter of each head rotated, linear scaling.
    "gpt_neox-sequential": neox(use_parallel_residual=False, hidden_size=32, tie_word_embeddings=True,
                                rope_parameters=rope("linear", factor=2.0, partial_rotary_factor=0.25)),
    # Biases everywhere; frequencies that depend on the length, here beyond the context.
    "llama-dynamic": like_llama("Llama", head_dim=10, attention_bias=True, mlp_bias=True, max_position_embeddings=12,
                                rope_parameters=rope("dynamic", factor=4.0)),
    # YaRN's ramp, and its factor on cos and sin.
    "llama-yarn": like_llama("Llama", head_dim=12, max_position_embeddings=128, tie_word_embeddings=True,
                             rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    # A window on every layer.
    "mistral": like_llama("Mistral", head_dim=8, sliding_window=5, num_attention_heads=8, intermediate_size=44,
                          vocab_size=36),
    # Biases on query, key and value only; a window from the second layer on.
    "qwen2": like_llama("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1, hidden_size=36),
    # Normalised heads.
    "qwen3": like_llama("Qwen3", head_dim=10, num_key_value_heads=3, tie_word_embeddings=True),
    # Fused projections, and LongRoPE below and beyond its original context with its factor on cos and sin.
    "phi3-short": like_llama("Phi3", hidden_size=60, original_max_position_embeddings=32, max_position_embeddings=128,
                             pad_token_id=None, rope_parameters=rope(
                                 "longrope", short_factor=[1.0, 1.1, 1.3, 1.5, 1.9],
                                 long_factor=[1.5, 2.0, 3.0, 4.0, 6.0])),
    "phi3-long": like_llama("Phi3", hidden_size=48, original_max_position_embeddings=6, max_position_embeddings=64,
                            pad_token_id=None, rope_parameters=rope(
                                "longrope", partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.3],
                                long_factor=[1.5, 2.0, 3.0])),
    # √d on embeddings, 1 + w, norms around the blocks, alternating windows, an own query scale, soft caps.
    "gemma2": like_llama("Gemma2", head_dim=10, pad_token_id=None, sliding_window=5, query_pre_attn_scalar=7, 
                         attn_logit_softcapping=3.0,
                         final_logit_softcapping=4.0),
    # Experts whose probabilities are made to sum to 1.
    "mixtral": like_llama("Mixtral", hidden_size=24, head_dim=8, intermediate_size=18, num_local_experts=4,
                          num_experts_per_tok=2),
    # Experts whose probabilities are not, on every second layer but the last of them.
    "qwen3_moe": like_llama("Qwen3Moe", hidden_size=24, head_dim=8, intermediate_size=20, moe_intermediate_size=10,
                            num_experts=6, num_experts_per_tok=3, num_hidden_layers=4, decoder_sparse_step=2,
                            mlp_only_layers=[3], norm_topk_prob=False),
    # And where they are.
    "qwen3_moe-normalised": like_llama("Qwen3Moe", hidden_size=24, head_dim=8, intermediate_size=20,
                                       moe_intermediate_size=10, num_experts=4, num_experts_per_tok=2,
                                       num_hidden_layers=1, norm_topk_prob=True, tie_word_embeddings=True),
    # With the routers' load balance in the loss.
    "mixtral-balanced": like_llama("Mixtral", hidden_size=12, head_dim=4, intermediate_size=10, num_local_experts=4,
                                   num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.5),
}
# Families whose weights sit in few tensors are small enough to keep every gradient.
GRADIENTS = ("norm", "ln_", "c_attn", "query_key_value", "qkv", "embed_positions", "wpe", "layers.1.", "h.1.", "gate",
             "project", "embed_in", "embed_tokens", "wte", "head", "embed_out")


def build(name):
    family, sizes = MODELS[name]
    torch.manual_seed(sorted(MODELS).index(name))
    config = getattr(transformers, family + "Config")(dtype="float32", **sizes)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for tensor, parameter in model.named_parameters():
            if parameter.dim() == 1:
                ones = 0.0 if tensor.endswith("bias") or family == "Gemma2" else 1.0
                parameter.copy_(ones + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def saved_names(model, folder, tensors):
    """`tensors`, which are named as parameters in memory, named and shaped as in the saved file."""
    keep = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    model.save_pretrained(folder / "gradients")
    saved = load_file(folder / "gradients" / "model.safetensors")
    for file in (folder / "gradients").iterdir():
        file.unlink()
    (folder / "gradients").rmdir()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(keep[name])
    return saved


def forward_and_backward(model, folder, out):
    tokens = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH))
    logits = model(tokens).logits
    # The routers' load balance is part of it where the configuration says so.
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    out |= {"tokens": tokens, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    gradients = saved_names(model, folder, gradients)
    out |= {f"grad/{name}": g for name, g in gradients.items() if any(part in name for part in GRADIENTS)}


@torch.no_grad()
def decode(model, out):
    tokens = torch.randint(0, model.config.vocab_size, (PROMPT + STEPS,))
    cache = model(tokens[None, :PROMPT], use_cache=True).past_key_values
    rows = []
    for position in range(PROMPT, PROMPT + STEPS):
        answer = model(tokens[None, position:position + 1], past_key_values=cache, use_cache=True)
        rows.append(answer.logits[0, -1])
    out |= {"decode/tokens": tokens, "decode/logits": torch.stack(rows)}


def old_spelling(config):
    """The fields as public hubs have them."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    old["torch_dtype"] = config["dtype"]
    parameters = dict(config.get("rope_parameters") or {})
    neox = config["model_type"] == "gpt_neox"
    if parameters:
        old["rotary_emb_base" if neox else "rope_theta"] = parameters.pop("rope_theta")
        partial = parameters.pop("partial_rotary_factor", None)
        if partial is not None:
            old["rotary_pct" if neox else "partial_rotary_factor"] = partial
        kind = parameters.pop("rope_type")
        old["rope_scaling"] = {"type": kind, **parameters} if kind != "default" else None
    if "num_local_experts" in old and config["model_type"] == "qwen3_moe":
        old["num_experts"] = old.pop("num_local_experts")
    return old


def main(folder, names):
    for name in names or MODELS:
        model, out = build(name), {}
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.old.json").write_text(json.dumps(old_spelling(config), indent=2) + "\n")
        decode(model, out)
        forward_and_backward(model, folder / name, out)
        out = {key: value.contiguous() for key, value in out.items()}
        save_file(out, folder / name / "golden.safetensors")
        print(name, "loss", float(out["loss"]), "tensors", len(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments = sys.argv[1:] or [str(pathlib.Path(__file__).parent / "families")]
    main(pathlib.Path(arguments[0]), arguments[1:])
