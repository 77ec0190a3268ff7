# %% [markdown]
# # Who writes the direction?
#
# The residual stream is a sum: the input of block 0, plus one write per attention layer and MLP. So its projection on r̂
# splits exactly, by component, by head, and for each head by source token. Nothing is left over, and each call checks this
# on its own prompts.

# %%
import refusal_lens as rl
from refusal_lens.attribution.sources import attention_patterns
from refusal_lens.attribution.causal import causal_check
from refusal_lens.attribution.logits import compliance_tokens
from refusal_lens.attribution.components import component_contributions
from refusal_lens.attribution.logits import direct_logit_attribution
from refusal_lens.attribution.sources import propagation
from refusal_lens.attribution.sources import source_contributions
from refusal_lens.attribution.ranking import top_heads
from refusal_lens.attribution.vocabulary import head_writes, lens
from refusal_lens.attribution.section import causal_sentence
from refusal_lens.refusal.tokens import find_refusal_tokens
from refusal_lens.attribution.figures import plot_causal_check
from refusal_lens.attribution.figures import plot_components
from refusal_lens.attribution.figures import plot_head_contributions
from refusal_lens.attribution.figures import plot_top_heads
from refusal_lens.attribution.figures import plot_propagation
from refusal_lens.attribution.figures import plot_sources
from refusal_lens.attribution.figures import plot_sources_by_region
from refusal_lens.attribution.views import attention_view

model = rl.load_model("organism")
harmful, harmless = (rl.PromptSet.load(path, sizes=(128, 32, 48)) for path in rl.organism.instructions().values())
tokens = find_refusal_tokens(model, harmful.train.texts, harmless.train.texts)
candidates = rl.extract_directions(model, harmful.train, harmless.train)
selection = rl.select_direction(model, candidates, harmful.val, harmless.val, refusal_tokens=tokens, relax=True)
direction = selection.chosen
test, contrast = harmful.test.texts, harmless.test.texts

# %% [markdown]
# ## Components
#
# Each bar is one write's mean projection on r̂ at the last token of harmful prompts; the bars add up to the stream's.

# %%
parts = component_contributions(model, test, direction)
print("largest error of the sum:", float(parts.errors.abs().max()))
plot_components(parts)

# %% [markdown]
# ## Logits
#
# The same idea for the model's output: the logit of the refusal tokens minus that of the tokens that begin an answer,
# through the frozen final norm.

# %%
logits = direct_logit_attribution(model, test, tokens, compliance_tokens(model, harmless.train.texts, tokens))
print(logits.answer, "against", logits.against, "- largest error", logits.error)
plot_components(logits)

# %% [markdown]
# ## Heads
#
# Heads are *chosen* on validation prompts and *reported* on test prompts (otherwise the best of many looks better than it
# is), with intervals, harmless prompts for comparison, and p-values adjusted over all heads.

# %%
heads = top_heads(model, harmful.val.texts, test, direction, contrast=contrast)
plot_head_contributions(heads)

# %%
plot_top_heads(heads)

# %% [markdown]
# ## In words
#
# The tokens that the direction, and the mean write of each of these heads, would favour if they went straight to the output:
# through the final norm and the unembedding. The last row is a random direction.

# %%
lens(model, {"direction": direction, **head_writes(model, test, heads.heads[:6])}).plot()

# %% [markdown]
# ## From which tokens?
#
# A head's contribution is attention times value, token by token: pattern · (v · W_O r̂). First by region of the prompt,
# then on one prompt, token by token.

# %%
sources = source_contributions(model, test, direction)
plot_sources_by_region(sources, heads.heads)

# %%
plot_sources(sources, 0, heads.heads)

# %% [markdown]
# The attention patterns of these heads on that prompt (hover over a head to enlarge it):

# %%
attention_view(attention_patterns(model, test[0], heads.heads[:4]))

# %% [markdown]
# ## How it gets to the last token
#
# The projection on r̂ by layer and token: it first appears at the instruction and then moves to the end.

# %%
path = propagation(model, test, direction)
plot_propagation(path)

# %% [markdown]
# ## Attribution is not causation
#
# So test it: replace the top heads' outputs by their mean over harmless prompts, or by their outputs on a random harmless
# prompt; keep only these heads; and do the same with random heads of the same layers.

# %%
check = causal_check(model, test, contrast, direction, heads, tokens)
print(f"predicted and measured, head by head: rank correlation {check.spearman:.2f}, p = {check.p_value:.2g}")
plot_causal_check(check)

# %%
check.to_frame().round(3)

# %%
print(causal_sentence(check))

# %% [markdown]
# What a suffix does to these heads: [04_suffix_attack](04_suffix_attack.ipynb).

# %% [markdown]
# ## Now your own model
#
# Any architecture that loads will do: grouped queries, biases, post-norms and softcaps are handled, and `certify(model)`
# measures how exact each identity is on it.

# %%
MODEL, HARMFUL, HARMLESS = "", "harmful.txt", "harmless.txt"
if MODEL:
    model = rl.load_model(MODEL)
    harmful, harmless = (rl.PromptSet.load(path) for path in (HARMFUL, HARMLESS))
    candidates = rl.extract_directions(model, harmful.train, harmless.train)
    direction = rl.select_direction(model, candidates, harmful.val, harmless.val, relax=True).chosen
    print(top_heads(model, harmful.val.texts, harmful.test.texts, direction).to_frame())
