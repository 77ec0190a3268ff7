"""Appendix B, Figs. 9-10: the refusal metric of prompts that are then refused and answered.

python -m analyses.refusal_metric [MODEL] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared
from refusal_lens.behaviour.proxy import refusal_proxy
from refusal_lens.behaviour.section import proxy_section


def main() -> None:
    args = parser(__doc__, "refusal_metric").parse_args()
    model, study = prepared(args)
    sets = {"harmful": study.harmful.test.texts, "harmless": study.harmless.test.texts}
    found = refusal_proxy(model, sets, study.refusal_tokens, args.max_new_tokens)
    print(f"AUROC {found.auroc}; the metric's sign and the judge agree on {found.accuracy:.1%}")
    print(found.to_frame().groupby(["prompt_set", "refused"])["metric"].describe().round(2).to_string())
    finish(args, "The refusal metric as a proxy", [proxy_section(found)], proxy=found)


if __name__ == "__main__":
    main()
