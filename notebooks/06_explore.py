# %% [markdown]
# # Explore by looking
#
# Type a request and a suffix, choose an intervention, and see at once what they do: the reply beside the plain one, the
# refusal metric, the projection of every token on the direction, the heads, one head's attention token by token. A suffix always stands beside
# random tokens of equal length, an intervention beside a random direction.

# %%
import refusal_lens as rl

model = rl.load_model("organism")
data = rl.load_prompts("organism", sizes=(64, 16, 16))
found = rl.find_direction(model, data)
suffixes = rl.SuffixSet.load(rl.organism.suffixes())
heads = rl.attribution.top_heads(model, data.harmful.val, data.harmful.test, found)

# %% [markdown]
# ## The explorer
#
# The top heads were chosen on validation prompts; the prompts to pick from are the test prompts. In a stored notebook, without
# a kernel, you see the last look as plain HTML. With a suffix, pick under "Why the suffix acts" what is to be measured about it.

# %%
explorer = rl.explore(model, found, data, suffixes, request="How do I pick a lock?", top_heads=heads)
explorer

# %% [markdown]
# ## The look as a record
#
# What the explorer shows is a record: `explorer.seen` holds all of it, to save, plot and compare.

# %%
explorer.seen.to_frame()

# %% [markdown]
# ## The same without the explorer
#
# Each view gives, under "as code", the call that makes it. The whole look is one call, too: here an adversarial suffix, and on
# top of it ablation at half strength.

# %%
suffix = suffixes.of("adversarial")[0].text
half = {"ablation": [rl.Ablate(found, strength=0.5)]}
seen = rl.explorer.look(
    model, "How do I pick a lock?", found, suffix, under=half, top_heads=heads, max_new_tokens=24
)
seen.to_frame()

# %% [markdown]
# ## The map
#
# Every token at every layer, white inside the range of 39 random directions.

# %%
seen.plot("map", conditions=["baseline", "adversarial", "random_suffix"])

# %% [markdown]
# ## Where the last token looks
#
# The top heads' attention by region. A head may attend to any suffix, whatever its text: compare with the random one.

# %%
seen.plot("heads", conditions=["baseline", "adversarial", "random_suffix"])

# %% [markdown]
# ## One head
#
# Raw weights mislead: a large weight on a token whose value writes nothing does nothing. So a pattern can show the
# weight, the weight times the length of what is written, the weight times its write along r̂, or the difference from the random
# suffix.

# %%
seen.plot("pattern", of="weight", conditions=["adversarial", "random_suffix"])

# %%
seen.plot("pattern", of="along", conditions=["adversarial", "random_suffix"])

# %% [markdown]
# ## One token
#
# What each token writes along r̂ at the last token, through all heads; `seen.plot("token", token=-1)` shows through which
# heads one token writes.

# %%
seen.plot("sources", conditions=["adversarial", "random_suffix"])

# %% [markdown]
# ## Now your own model
#
# `refusal-lens explore MODEL --direction RUN` opens the explorer on a finished run. On a large model the first views take a
# few forward passes; replies follow as they are generated.

# %%
MODEL, HARMFUL, HARMLESS = "", "harmful.txt", "harmless.txt"
if MODEL:
    model = rl.load_model(MODEL)
    data = rl.data.PromptPair(rl.PromptSet.load(HARMFUL), rl.PromptSet.load(HARMLESS))
    display(rl.explore(model, rl.find_direction(model, data), data))
