# %% [markdown]
# # Finding the refusal direction
#
# [Arditi et al. 2024](https://arxiv.org/abs/2406.11717) found that refusal in chat models is mediated by one direction in
# the residual stream: take the difference between the mean activations on harmful and on harmless requests. Ablating the
# right such difference stops refusals; adding it causes them. This notebook finds that direction step by step, on a tiny
# chat model that comes with the package, in seconds on a laptop's CPU.

# %%
import pandas as pd

import refusal_lens as rl

model = rl.load_model("organism")
model

# %% [markdown]
# ## Prompts
#
# There are three disjoint splits: the direction is *extracted* on `train` and *chosen* on `val`, and everything reported is
# measured on `test`. Prompts are requests only: no file here answers a harmful one.

# %%
data = rl.load_prompts("organism", sizes=(128, 32, 64))
harmful, harmless = data.harmful, data.harmless
pd.DataFrame({"harmful": harmful.train.texts[:5], "harmless": harmless.train.texts[:5]})

# %% [markdown]
# The chat template is the tokenizer's own. Candidates are taken at the *post-instruction positions*: the template's tokens
# after the request, where the model has read everything and is about to answer.

# %%
print(model.chat.render(harmful.train.texts[0]))
model.chat.post_labels()

# %% [markdown]
# ## The refusal metric
#
# Which tokens begin a refusal? `rl.find_refusal_tokens` finds them in the model's own replies. The refusal metric is the
# log-odds of those tokens at the last position (paper, appendix B). The point above which a prompt counts as refused is
# calibrated on the same replies; the paper uses 0 (`point="paper"`).

# %%
tokens = rl.find_refusal_tokens(model, harmful.train, harmless.train)
print(tokens.texts, "refused above", round(tokens.threshold, 3))
{"AUROC, held out": str(tokens.auroc)} | {f"begin {kind} replies": str(share) for kind, share in tokens.coverage.items()}

# %% [markdown]
# ## Candidates
#
# One mean difference per post-instruction position and layer (section 2.3), accumulated in float64 over the prompts.

# %%
candidates = rl.extract_directions(model, harmful.train, harmless.train)
candidates.mean_diff.shape

# %% [markdown]
# ## Selection
#
# Each candidate gets three scores on `val` (appendix C): **bypass**, the metric on harmful prompts with it ablated
# (lower is better); **induce**, the metric on harmless prompts with it added (must be above that point); **KL**, the
# next-token KL divergence on harmless prompts with it ablated (must be below 0.1). Candidates in the last fifth of the
# layers are dropped, and the lowest bypass of the rest wins.

# %%
selection = rl.select_direction(
    model, candidates, harmful.val, harmless.val, refusal_tokens=tokens, full_grid=True, relax=True
)
direction = selection.chosen
print(direction.label, "relaxed:", direction.relaxed or "nothing")
selection.plot(pos_labels=model.chat.post_labels())

# %% [markdown]
# The table says why each candidate was dropped.

# %%
table = selection.scores.to_frame()
table["reason"] = [reason or "kept" for row in selection.reasons for reason in row]
table.round(3)

# %% [markdown]
# ## What it separates
#
# The cosine between the last position's residual stream and the direction, layer by layer, on prompts that were not used
# to find it: harmful and harmless requests separate.

# %%
rl.direction.trace_direction(model, {"harmful": harmful.test, "harmless": harmless.test}, direction).plot()

# %% [markdown]
# ## Is it luck?
#
# Resample the training prompts with replacement and select again. If the winners agree, the direction is a property of
# the model rather than of these prompts.

# %%
stability = rl.direction.selection_stability(model, harmful, harmless, tokens, resamples=10)
print("mean cosine of two winners:", stability.pairwise())
stability.plot()

# %% [markdown]
# ## All of this in one line
#
# `rl.find_direction` does all of these steps: tokens, filter, candidates, selection. The next notebooks begin with it.

# %%
rl.find_direction(model, data)

# %% [markdown]
# Every figure here can be saved: `selection.plot().save("scores.svg")` (or .png, .pdf, .html).
#
# What it *does* is the next notebook's question: [02_intervene](02_intervene.ipynb).

# %% [markdown]
# ## Now your own model
#
# Any chat model that refuses: a Hugging Face id, a local folder or a `.gguf` file; prompts from text, CSV, JSON or JSONL
# files. If no candidate passes the paper's rule, the error names the nearest ones and what each would need;
# `relax=True` takes the nearest and records that it did so.

# %%
MODEL, HARMFUL, HARMLESS = "", "harmful.txt", "harmless.txt"
if MODEL:
    model = rl.load_model(MODEL)
    data = rl.load_prompts(HARMFUL, HARMLESS)
    found = rl.find_direction(model, data)
    print(found.direction.label, found.direction.relaxed)
