# %% [markdown]
# # Who writes the direction?
#
# The residual stream is a sum: the input of block 0, plus one write per attention layer and MLP. So its projection on r̂
# splits exactly, by component, by head, and for each head by source token. Nothing is left over, and each call checks this
# on its own prompts.

# %%
import refusal_lens as rl

model = rl.load_model("organism")
data = rl.load_prompts("organism", sizes=(128, 32, 48))
found = rl.find_direction(model, data)
direction, tokens = found.direction, found.refusal_tokens
test, contrast = data.harmful.test, data.harmless.test

# %% [markdown]
# ## Components
#
# Each bar is one write's mean projection on r̂ at the last token of harmful prompts; the bars add up to the stream's.

# %%
parts = rl.attribution.component_contributions(model, test, direction)
print("largest error of the sum:", float(parts.errors.abs().max()))
parts.plot()

# %% [markdown]
# ## Logits
#
# The same idea for the model's output: the logit of the refusal tokens minus that of the tokens that begin an answer,
# through the frozen final norm.

# %%
answers = rl.attribution.compliance_tokens(model, data.harmless.train, tokens)
logits = rl.direct_logit_attribution(model, test, tokens, answers)
print(logits.answer, "against", logits.against, "- largest error", logits.error)
logits.plot()

# %% [markdown]
# ## Heads
#
# Heads are *chosen* on validation prompts and *reported* on test prompts (otherwise the best of many looks better than it
# is), with intervals, harmless prompts for comparison, and p-values adjusted over all heads.

# %%
heads = rl.attribution.top_heads(model, data.harmful.val, test, direction, contrast=contrast)
heads.plot()

# %%
heads.plot("top heads")

# %% [markdown]
# ## In words
#
# The tokens that the direction, and the mean write of each of these heads, would favour if they went straight to the output:
# through the final norm and the unembedding. The last row is a random direction.

# %%
writes = rl.attribution.head_writes(model, test, heads.heads[:6])
rl.attribution.lens(model, {"direction": direction, **writes}).plot()

# %% [markdown]
# ## From which tokens?
#
# A head's contribution is attention times value, token by token: pattern · (v · W_O r̂). First by region of the prompt,
# then on one prompt, token by token.

# %%
sources = rl.attribution.source_contributions(model, test, direction)
sources.plot("by region", heads=heads.heads)

# %%
sources.plot(prompt=0, heads=heads.heads)

# %% [markdown]
# The attention patterns of these heads on that prompt (hover over a head to enlarge it). Calling `.save("heads.pdf")` on the
# view draws it for print, with the tokens on the axes.

# %%
rl.plots.attention_view(rl.attribution.attention_patterns(model, test[0], heads.heads[:4]))

# %% [markdown]
# ## How it gets to the last token
#
# The projection on r̂ by layer and token: it first appears at the instruction and then moves to the end.

# %%
rl.attribution.propagation(model, test, direction).plot()

# %% [markdown]
# ## Attribution is not causation
#
# So test it: replace the top heads' outputs by their mean over harmless prompts, or by their outputs on a random harmless
# prompt; keep only these heads; and do the same with random heads of the same layers.

# %%
check = rl.attribution.causal_check(model, test, contrast, direction, heads, tokens)
print(f"predicted and measured, head by head: rank correlation {check.spearman:.2f}, p = {check.p_value:.2g}")
check.plot()

# %%
check.to_frame().round(3)

# %%
share = check.share()
print("share of the ablation's effect, beyond random heads:", rl.report.percent(share), "-", rl.report.grade(share))

# %% [markdown]
# What a suffix does to these heads: [04_suffix_attack](04_suffix_attack.ipynb).

# %% [markdown]
# ## Now your own model
#
# Any architecture that loads will do: grouped queries, biases, post-norms and softcaps are handled, and `rl.certify(model)`
# measures how exact each identity is on it.

# %%
MODEL, HARMFUL, HARMLESS = "", "harmful.txt", "harmless.txt"
if MODEL:
    model = rl.load_model(MODEL)
    data = rl.load_prompts(HARMFUL, HARMLESS)
    direction = rl.find_direction(model, data).direction
    print(rl.attribution.top_heads(model, data.harmful.val, data.harmful.test, direction).to_frame())
