"""Direct logit attribution: what makes the refusal tokens likelier than the first tokens of answers.

    python -m analyses.dla_refusal_tokens [MODEL] [--out DIR]

Last, it prints how far TransformerLens's own attribution (without compatibility mode) is from the exact one.
"""

from __future__ import annotations

import torch

from refusal_lens import HookedChatModel
from refusal_lens.attribution.figures import plot_components
from refusal_lens.attribution.logits import compliance_tokens, direct_logit_attribution

from .common import parser, prepared


@torch.inference_mode()
def transformerlens_gap(model: HookedChatModel, prompt: str, answer: int, against: int) -> tuple[float, float]:
    """Largest difference by component, and of the sums, between ``ActivationCache.logit_attrs`` and ours (logits)."""
    ours = direct_logit_attribution(model, [prompt], [answer], [against])
    ids = model.tokenize([prompt]).ids
    _, cache = model.tl.run_with_cache(ids)
    stack, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
    pair = (torch.tensor([token], device=ids.device) for token in (answer, against))
    theirs = cache.logit_attrs(stack, tokens=next(pair), incorrect_tokens=next(pair), pos_slice=-1)[:, 0].float().cpu()
    by_name = dict(zip(labels, theirs.tolist(), strict=True))
    own = dict(zip(ours.labels, ours.values[:, 0].tolist(), strict=True))
    gaps = [abs(by_name["embed"] - own["embed"])]
    for layer in range(model.n_layers):
        gaps += [abs(by_name[f"{layer}_{part}_out"] - own[f"L{layer} {part}"]) for part in ("attn", "mlp")]
    return max(gaps), abs(float(theirs.sum()) - float(ours.before_cap))


def main() -> None:
    args = parser(__doc__, "dla_refusal_tokens").parse_args()
    model, study = prepared(args)
    answer = study.refusal_tokens
    against = compliance_tokens(model, study.harmless.train.texts, answer)
    figures = []
    for name, prompts in (("harmful", study.harmful.test), ("harmless", study.harmless.test)):
        found = direct_logit_attribution(model, prompts.texts, answer, against)
        print(f"\n{name}, n = {len(prompts)}: mean logit of {found.answer} minus that of {found.against}")
        print(
            f"model {float(found.measured.mean()):.3f}, parts {float(found.parts.sum(0).mean()):.3f} (before any cap),"
        )
        print(f"largest error {found.error:.2g}")
        print(found.to_frame().head(12).round(3).to_string(index=False))
        found.save(args.out / f"dla_{name}")
        figures.append(plot_components(found))
    if model.backend.kind == "TransformerBridge":
        gap, total = transformerlens_gap(model, study.harmful.test[0], answer.ids[0], against.ids[0])
        print(f"\nTransformerLens's logit_attrs without compatibility mode: off by up to {gap:.3f} logits a component,")
        print(f"{total:.3f} in the sum")
    html = "".join(f.to_html(full_html=False, include_plotlyjs=i == 0) for i, f in enumerate(figures))
    (args.out / "dla_refusal_tokens.html").write_text(html, "utf-8")


if __name__ == "__main__":
    main()
