"""Writes the Llama goldens: tiny, odd-sized models whose numbers come from `transformers`.

    pip install torch transformers safetensors
    python llama.py [OUT]

Each folder under `llama/` holds `config.json` and `model.safetensors` as `transformers` saves them, and
`golden.safetensors`:

    tokens [B, T], logits [B, T, V], loss [1] (mean next-token cross-entropy), grad/<tensor>
    adamw/<tensor>: the parameters after one AdamW step (lr 1e-3, betas 0.9 and 0.95, eps 1e-8, decay 0.1 on all)
    decode/tokens [P + 16], decode/logits [16, V]: 16 cached steps after a prompt of P tokens

All sizes are odd on purpose: head_dim is not hidden / heads, no extent is a power of two, and the heads of
`untied` and `tied` divide by 2 and 3, those of `grouped` by 3 only.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "untied": dict(hidden_size=36, num_attention_heads=12, num_key_value_heads=6, vocab_size=37,
                   tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "tied": dict(hidden_size=30, num_attention_heads=6, num_key_value_heads=6, vocab_size=41,
                 tie_word_embeddings=True, rope_parameters=LLAMA3),
    "grouped": dict(hidden_size=30, num_attention_heads=6, num_key_value_heads=3, vocab_size=41,
                    tie_word_embeddings=False,
                    rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
}
PROMPT, STEPS = 7, 16


def model(name):
    torch.manual_seed(sorted(VARIANTS).index(name))
    config = LlamaConfig(head_dim=10, intermediate_size=42, num_hidden_layers=2, max_position_embeddings=96,
                         rms_norm_eps=1e-5, dtype="float32", **VARIANTS[name])
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return model


def forward_and_backward(model, out):
    tokens = torch.randint(0, model.config.vocab_size, (2, 18))
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    out |= {"tokens": tokens, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    out |= {f"grad/{name}": p.grad.clone() for name, p in model.named_parameters()}


@torch.no_grad()
def decode(model, out):
    tokens = torch.randint(0, model.config.vocab_size, (PROMPT + STEPS,))
    cache = model(tokens[None, :PROMPT], use_cache=True).past_key_values
    rows = []
    for step in range(STEPS):
        position = PROMPT + step
        answer = model(tokens[None, position:position + 1], past_key_values=cache, use_cache=True)
        rows.append(answer.logits[0, -1])
    out |= {"decode/tokens": tokens, "decode/logits": torch.stack(rows)}


def adamw(model, out):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer.step()
    out |= {f"adamw/{name}": p.detach().clone() for name, p in model.named_parameters()}


def main(folder):
    for name in VARIANTS:
        m, out = model(name), {}
        m.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        forward_and_backward(m, out)
        decode(m, out)
        adamw(m, out)
        out = {key: value.contiguous() for key, value in out.items()}
        save_file(out, folder / name / "golden.safetensors", metadata={"prompt": str(PROMPT)})
        print(name, "loss", float(out["loss"]), "tensors", len(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "llama"))
