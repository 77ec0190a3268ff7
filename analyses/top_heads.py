"""The heads that write the refusal direction (paper Fig. 6a's selection), and whether they matter.

Heads are chosen on the validation prompts and reported on the test prompts.

    python -m analyses.top_heads [MODEL] [--out DIR]
"""

from __future__ import annotations

from refusal_lens.attribution.causal import causal_check
from refusal_lens.attribution.figures import (
    plot_causal_check,
    plot_head_contributions,
    plot_patching,
    plot_sources_by_region,
    plot_top_heads,
)
from refusal_lens.attribution.patching import attribution_patching, equal_length_pairs
from refusal_lens.attribution.ranking import top_heads
from refusal_lens.attribution.sources import attention_patterns, source_contributions
from refusal_lens.attribution.views import attention_view, tokens_view
from refusal_lens.report.views import circuitsvis_script

from .common import parser, prepared


def main() -> None:
    args = parser(__doc__, "top_heads").parse_args()
    model, study = prepared(args)
    direction, tokens = study.selection.chosen, study.refusal_tokens
    test, contrast = study.harmful.test.texts, study.harmless.test.texts
    heads = top_heads(model, study.harmful.val.texts, test, direction, contrast=contrast)
    print(f"\nchosen on {heads.n_selection} prompts, reported on {heads.n_reported}; {heads.test}, adjusted over heads")
    print(heads.to_frame().round(4).to_string(index=False))
    print(f"their share of all positive contributions: {heads.share:.0%}")
    check = causal_check(model, test, contrast, direction, heads, tokens)
    print(check.to_frame().round(3).to_string(index=False))
    print(check.singles_frame().round(3).to_string(index=False))
    print(f"predicted and measured, rank correlation: {check.spearman:.2f} (p = {check.p_value:.2g})")
    pairs = equal_length_pairs(model, test, contrast, limit=8)
    patching = attribution_patching(model, *pairs, tokens, heads=check.singles)
    print(f"attribution patching and exact patching of these heads: Spearman {patching.spearman:.2f}")
    sources = source_contributions(model, test, direction)
    for name, record in (("heads", heads), ("causal", check), ("patching", patching), ("sources", sources)):
        record.save(args.out / name)
    pattern = attention_patterns(model, test[0], heads.heads[:4])
    views = circuitsvis_script() + attention_view(pattern)
    views += tokens_view(sources, 0, heads.heads)
    (args.out / "attention.html").write_text(views, "utf-8")
    figures = [plot_head_contributions(heads), plot_top_heads(heads), plot_causal_check(check)]
    figures += [plot_patching(patching), plot_sources_by_region(sources, heads.heads)]
    html = "".join(f.to_html(full_html=False, include_plotlyjs=i == 0) for i, f in enumerate(figures))
    (args.out / "top_heads.html").write_text(html, "utf-8")


if __name__ == "__main__":
    main()
