"""Time of the relation KL on a GPU, beside attention on the same shape in the same process.

Refuses to time what fails its check against float64 first. Everything is timed as replays of CUDA graphs, as
training runs it: time of the device, without Python's. `launched` is with it. The file it writes:

    device, torch, triton, python, cudnn, commit, date     where and when
    gemm_tflops                                            a 8192^3 bf16 product, same process
    rounds                                                 windows of each candidate behind a median
    shapes: NAME -> dtype, batch, heads, tokens, head_dim, causal, and
        error, error_plain        of the gradient against float64, ours and plain PyTorch's,
                                  relative, on min(tokens, 2048) tokens
        error_any_order           ours with deterministic=False
        one_program               whether that is the same kernels, which are then timed once
        forward                   ours, ms: {p20, p50, p80}
        forward_backward          likewise, deterministic; so are any_order (deterministic=False),
                                  triton (the portable kernels), cudnn, cudnn_forward, flash,
                                  flash_forward (scaled_dot_product_attention, null where it does
                                  not run), dense (the formula in plain PyTorch) and compiled (by
                                  torch.compile), the last two where memory allows
        launched                  p50 of forward_backward, any_order and cudnn called from Python
        ms, any_order_ms          p50 of forward_backward and of any_order
        ratio_cudnn, ratio_flash  any_order_ms over theirs, below 1 where ours is faster; null
                                  without theirs
        deterministic             the same ratios of ms
        tflops, gemm_fraction     of any_order, at 6 u of necessary work, u = B H N^2 D; over
                                  gemm_tflops
        dense_peak_gib, peak_gib  memory above the operands, forward + backward
    limited: NAME -> window or documents, and
        error, error_plain        as above
        pairs                     pairs of tokens that see each other, over those of causal rows
        ms, full_ms, ratio_full   p50 of forward_backward, that of the causal shape, and their ratio
    attention: NAME -> batch, heads, kv_heads, tokens, head_dim, and
        error, error_any_order, error_plain     as above, of queries and keys
        forward_backward, any_order, triton, cudnn     as above, of attention_kl
        ms, any_order_ms, ratio_cudnn, deterministic   likewise
    layers: NAME -> heads {q, k, v}, window (or null), and
        error, error_plain        as above, of the queries
        forward_backward          of layer_relation_kl, ms: {p20, p50, p80}; likewise separate, of a
                                  call each, and queries, of the queries alone
        ms                        p50 of forward_backward
        ratio_share               ms over that of the queries times heads of all over theirs
        ratio_separate            ms over that of separate calls
        ratio_full                of a layer with a window, ms over that without
    lengths: TOKENS -> of one head of 64, and
        ms, peak_gib              median of forward + backward; memory above the operands
        ratio_square              ms over what the first length's would be by the square
    shapes are named DTYPE.dHEAD_DIM.tTOKENS, such as bf16.d128.t4096; .wWINDOW or .pDOCUMENTS follow;
    layers bf16.dHEAD_DIM.tTOKENS.hQ+K+V, with .wWINDOW; attention bf16.dHEAD_DIM.tTOKENS.hHEADS+KV_HEADS
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.record import add_arguments, circumstances, write
from benchmarks.relation_check import attention_operands, check, operands, plain, small
from benchmarks.replays import gemm_rate, interleaved, peak_gib, replayed
from linearard.ops.relation_kl import attention_kl, layer_relation_kl, relation_kl
from linearard.ops.relation_kl.hopper import kernels

SHAPES = [
    (1, 32, 2048, 128),
    (1, 32, 4096, 128),
    (1, 9, 8192, 64),
    (1, 32, 8192, 128),
    (1, 32, 16384, 128),
]
LONG = (1, 32, 32768, 128)
LIMITED_SHAPE = (1, 32, 16384, 128)
WINDOWS = [1024, 4096]
DOCUMENTS = [16]  # packed documents of one length
#: LLaMA2-7B, SmolLM2-135M in batches of two, LLaMA3-8B: batch, heads, kv_heads, tokens, head_dim.
ATTENTION = [(1, 32, 32, 4096, 128), (2, 9, 3, 2048, 64), (1, 32, 8, 8192, 128)]
#: LLaMA3-8B, Mistral-7B, SmolLM2-135M: tokens, head_dim, heads, window.
LAYERS = [
    (8192, 128, (32, 8, 8), None),
    (8192, 128, (32, 8, 8), 4096),
    (2048, 64, (9, 3, 3), None),
]
LENGTHS = [131072, 262144, 524288, 1_000_000]
DENSE_LIMIT = 64 << 30  # bytes that the dense formula may need


def backends(q, k, v):
    """Attention's backends that run here, by name: functions of whether to run the backward, too."""
    upstream = torch.randn_like(q)
    grouped = q.shape[1] != k.shape[1]

    def attention(backend, backward):
        with sdpa_kernel(backend):
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            if backward:
                torch.autograd.grad(out, (q, k, v), upstream)

    found = {}
    for name, backend in (
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
    ):
        try:
            attention(backend, True)
        except RuntimeError as error:
            print(f"{name} does not run here: {error}")
            continue
        found[name] = lambda backward, b=backend: attention(b, backward)
    return found


def candidates_at(shape):
    """What is timed at a shape, by name: ours, and attention's backends where they run."""
    teacher, student = operands(shape)

    def forward_backward(**options):
        torch.autograd.grad(relation_kl(teacher, student, **options), student)

    def forward():
        with torch.no_grad():
            relation_kl(teacher, student)

    candidates = {
        "forward": forward,
        "forward_backward": forward_backward,
        "any_order": lambda: forward_backward(deterministic=False),
        "triton": lambda: forward_backward(implementation="triton"),
    }
    theirs = [x.detach().clone().requires_grad_() for x in (teacher, student, teacher)]
    for name, attention in backends(*theirs).items():
        candidates[f"{name}_forward"] = lambda a=attention: a(False)
        candidates[name] = lambda a=attention: a(True)
    return candidates


def measure(shape, gemm_tflops, rounds):
    batch, heads, tokens, head_dim = shape
    ours, in_any_order, theirs = check(small(shape))
    candidates = candidates_at(shape)
    result = {
        "dtype": "bfloat16",
        "batch": batch,
        "heads": heads,
        "tokens": tokens,
        "head_dim": head_dim,
        "causal": True,
        "error": ours,
        "error_any_order": in_any_order,
        "error_plain": theirs,
        "peak_gib": peak_gib(candidates["forward_backward"]),
    }
    result |= times_of(candidates, rounds, batch * heads, tokens, head_dim)
    called = {
        k: v for k, v in candidates.items() if k in ("forward_backward", "any_order", "cudnn")
    }
    result["launched"] = {k: v["p50"] for k, v in interleaved(called, 5).items()}
    if batch * heads * tokens * tokens * 2 * 12 <= DENSE_LIMIT:
        teacher, student = operands(shape)

        def dense(formula=plain):
            torch.autograd.grad(formula(teacher, student), student)

        compiled = torch.compile(plain)
        result["dense_peak_gib"] = peak_gib(dense)
        result["compiled_peak_gib"] = peak_gib(lambda: dense(compiled))
        result |= replayed({"dense": dense, "compiled": lambda: dense(compiled)}, 5)
    result |= ratios(result)
    tflops = 6 * batch * heads * tokens**2 * head_dim / result["any_order_ms"] / 1e9
    return result | {
        "tflops": round(tflops, 1),
        "gemm_fraction": round(tflops / gemm_tflops, 3),
    }


def times_of(candidates, rounds, heads, tokens, head_dim):
    """Times by name. Where order costs nothing, `any_order` is `forward_backward`, and is not timed again.

    One program that is timed twice has two medians.
    """
    on_hopper = torch.cuda.get_device_capability() == (9, 0)
    same = on_hopper and kernels.order_pays(heads, tokens, head_dim)
    timed = {name: run for name, run in candidates.items() if not (same and name == "any_order")}
    times = replayed(timed, rounds)
    return {"one_program": same, "any_order": times["forward_backward"], **times}


def ratios(result):
    """Medians of ours, and ours over attention's backends, null without them."""
    ms, fastest = (result[name]["p50"] for name in ("forward_backward", "any_order"))
    found = {"ms": ms, "any_order_ms": fastest, "deterministic": {}}
    for name in ("cudnn", "flash"):
        theirs = found[name] = result.get(name)
        found[f"ratio_{name}"] = theirs and round(fastest / theirs["p50"], 3)
        found["deterministic"][f"ratio_{name}"] = theirs and round(ms / theirs["p50"], 3)
    return found


def measure_attention(rounds):
    """The relation of queries and keys, both trained, beside attention on the same shape."""
    results = {}
    for batch, heads, kv_heads, tokens, head_dim in ATTENTION:
        group = heads // kv_heads
        few = (batch, group * max(1, 4 // group), max(1, 4 // group), min(tokens, 2048), head_dim)
        ours, in_any_order, theirs = check(attention_operands(*few))
        given = attention_operands(batch, heads, kv_heads, tokens, head_dim)

        def forward_backward(given=given, **options):
            torch.autograd.grad(attention_kl(*given, **options), given[2:])

        candidates = {
            "forward_backward": forward_backward,
            "any_order": lambda run=forward_backward: run(deterministic=False),
            "triton": lambda run=forward_backward: run(implementation="triton"),
        }
        q, k = (x.detach().clone().requires_grad_() for x in given[2:])
        for name, attention in backends(q, k, k.detach().clone().requires_grad_()).items():
            candidates[name] = lambda a=attention: a(True)
        result = {
            "batch": batch,
            "heads": heads,
            "kv_heads": kv_heads,
            "tokens": tokens,
            "head_dim": head_dim,
            "error": ours,
            "error_any_order": in_any_order,
            "error_plain": theirs,
            **times_of(candidates, rounds, batch * heads, tokens, head_dim),
        }
        name = f"bf16.d{head_dim}.t{tokens}.h{heads}+{kv_heads}"
        results[name] = result | ratios(result)
    return results


def measure_lengths():
    """One head of 64 up to a million tokens."""
    results = {}
    for tokens in LENGTHS:
        teacher, student = operands((1, 1, tokens, 64))

        def run(teacher=teacher, student=student):
            torch.autograd.grad(relation_kl(teacher, student), student)

        peak = peak_gib(run)
        ms = replayed({"": run}, 3)[""]["p50"]
        first = results.setdefault(str(LENGTHS[0]), {"ms": ms})["ms"]
        square = first * (tokens / LENGTHS[0]) ** 2
        results[str(tokens)] = {"ms": ms, "peak_gib": peak, "ratio_square": round(ms / square, 4)}
    return results


def boundaries(tokens, documents):
    return torch.linspace(0, tokens, documents + 1, device="cuda").to(torch.int32)


def measure_limited(rounds):
    """Windows and packed documents beside the causal shape that they narrow."""
    tokens = LIMITED_SHAPE[2]
    checked = min(tokens, 2048)
    cases = {f"w{w}": ({"window": w // 8}, {"window": w}) for w in WINDOWS}
    for n in DOCUMENTS:
        cases[f"p{n}"] = tuple({"cu_seqlens": boundaries(t, n)} for t in (checked, tokens))
    errors = {name: check(small(LIMITED_SHAPE), **few) for name, (few, _) in cases.items()}
    teacher, student = operands(LIMITED_SHAPE)

    def forward_backward(limits):
        torch.autograd.grad(relation_kl(teacher, student, **limits), student)

    candidates = {name: lambda x=limits: forward_backward(x) for name, (_, limits) in cases.items()}
    candidates["full"] = lambda: forward_backward({})
    times = replayed(candidates, rounds)
    pairs = {f"w{w}": w * tokens - w * (w - 1) // 2 for w in WINDOWS}
    pairs |= {f"p{n}": n * (tokens // n) * (tokens // n + 1) // 2 for n in DOCUMENTS}
    full_ms = times["full"]["p50"]
    return {
        f"bf16.d{LIMITED_SHAPE[3]}.t{tokens}.{name}": {
            "error": errors[name][0],
            "error_plain": errors[name][-1],
            "pairs": round(pairs[name] / (tokens * (tokens + 1) // 2), 4),
            "ms": times[name]["p50"],
            "full_ms": full_ms,
            "ratio_full": round(times[name]["p50"] / full_ms, 4),
        }
        for name in cases
    }


def measure_layers(rounds):
    """Queries, keys and values together, beside a call each and the queries alone."""
    results = {}
    for tokens, head_dim, heads, window in LAYERS:
        pairs = {
            name: operands((1, n, tokens, head_dim)) for name, n in zip("qkv", heads, strict=True)
        }
        error, _, error_plain = check(small((1, heads[0], tokens, head_dim)), window=window)

        def together(pairs=pairs, window=window):
            losses = layer_relation_kl(pairs, window=window)
            torch.autograd.grad(sum(losses.values()), [student for _, student in pairs.values()])

        def alone(name, pairs=pairs, window=window):
            torch.autograd.grad(relation_kl(*pairs[name], window=window), pairs[name][1])

        def separate(alone=alone):
            for name in "qkv":
                alone(name)

        candidates = {"forward_backward": together, "separate": separate}
        candidates["queries"] = lambda alone=alone: alone("q")
        if window is not None:
            candidates["full"] = lambda together=together: together(window=None)
        times = replayed(candidates, rounds)
        ms = times["forward_backward"]["p50"]
        share = times["queries"]["p50"] * sum(heads) / heads[0]
        name = f"bf16.d{head_dim}.t{tokens}.h{'+'.join(map(str, heads))}"
        name += "" if window is None else f".w{window}"
        results[name] = {
            "heads": dict(zip("qkv", heads, strict=True)),
            "window": window,
            "error": error,
            "error_plain": error_plain,
            **times,
            "ms": ms,
            "ratio_share": round(ms / share, 4),
            "ratio_separate": round(ms / times["separate"]["p50"], 4),
        }
        if window is not None:
            results[name]["ratio_full"] = round(ms / times["full"]["p50"], 4)
    return results


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks relation_kl", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--long", action="store_true", help="also 32768 tokens, and one head up to a million"
    )
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU")
    gemm = gemm_rate()
    results = {
        **circumstances(options.commit),
        "gemm_tflops": gemm,
        "rounds": options.rounds,
        "shapes": {},
    }
    for shape in SHAPES + [LONG] * options.long:
        name = f"bf16.d{shape[3]}.t{shape[2]}"
        results["shapes"][name] = row = measure(shape, gemm, options.rounds)
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)}, flush=True)
        print(
            "   ",
            {k: v["p50"] for k, v in row.items() if isinstance(v, dict) and "p50" in v},
            flush=True,
        )
        write(options.out, results)
    results["limited"] = measure_limited(options.rounds)
    print(results["limited"], flush=True)
    results["attention"] = measure_attention(options.rounds)
    print(results["attention"], flush=True)
    results["layers"] = measure_layers(options.rounds)
    print(results["layers"], flush=True)
    write(options.out, results)
    if options.long:
        results["lengths"] = measure_lengths()
        print(results["lengths"], flush=True)
        write(options.out, results)
