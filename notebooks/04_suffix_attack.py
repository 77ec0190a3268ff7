# %% [markdown]
# # What does a suffix do inside the model?
#
# A model refuses a harmful request. Append eight meaningless words, and it no longer does. This notebook dissects such
# suffixes on the embedded model: at which layer and through which heads and tokens they act, and whether that
# is the *cause*. Suffixes are input data here; nothing in this project searches for them.
#
# It runs on a laptop's CPU in under a minute. The definitions are in
# [docs/hijacking.md](../docs/hijacking.md).

# %%
import refusal_lens as rl

model = rl.load_model("organism")
data = rl.load_prompts("organism", sizes=(64, 24, 40))
found = rl.find_direction(model, data)
found.direction.label

# %% [markdown]
# ## The suffixes
#
# The file gives each suffix a kind. Three are adversarial (found when the model was made), the others random words.
# `rl.SuffixSet.load` also reads text, CSV, nanoGCG results as JSON and JailbreakBench artifacts. Length is counted in
# tokens *after an instruction*, since a tokenizer may merge the two; if it does, that is an error.

# %%
suffixes = rl.SuffixSet.load(rl.organism.suffixes())
few = rl.SuffixSet("few", (*suffixes.of("adversarial").items, *suffixes.of("random_words").items[:2]))
[(s.kind, n, s.text) for s, n in zip(few, few.lengths(model.chat, data.harmful.test[0]), strict=True)]

# %% [markdown]
# ## Investigate all of them
#
# The heads are chosen on the validation prompts and reported on the test prompts. Each suffix is compared with random
# tokens of equal length, drawn afresh for each prompt. `metric_drop` is the refusal metric (log-odds of the refusal
# tokens) with random tokens minus that with the suffix, with its 95% interval; `p` is adjusted over suffixes.

# %%
settings = rl.hijacking.Settings(max_new_tokens=12, shuffled=False, n_random=2, forensics=12)
report = rl.hijacking.investigate(model, data, few, found, settings=settings)
report.results_frame().drop(columns=["suffix", "refused_shuffled"]).round(3)

# %% [markdown]
# Refusals fall from all to none with the adversarial suffixes and stay with random words. Consider the strongest suffix.

# %%
result = report.result()
print(result.suffix.text)
report.plot("trace by layer")

# %% [markdown]
# **Where it departs.** Left: at the last position the suffix leaves the random tokens' curve at the dashed layer and
# ends at the harmless prompts' level. Right: at the instruction's last token nothing changes, and it can't: attention
# is causal, and the suffix comes later.
#
# ## Which heads?

# %%
report.plot("heads")

# %% [markdown]
# One head changes more than the others. Where does it attend? Each column adds up to 1.

# %%
report.plot("attention by region")

# %%
print("mean over the top heads", result.attention_rise)
{label: str(rise) for label, rise in zip(report.head_labels, result.head_rises(), strict=True)}

# %% [markdown]
# The first head turns to the suffix; the mean over the top heads rises by much less. The paper reports a rise for its top
# eight heads together; on this model a single head shows it, not the mean.
#
# The same head on one prompt, plain and with the suffix, on the same tokens (hover over a head to enlarge it).

# %%
rl.plots.attention_pair_view(result.patterns[:2])

# %% [markdown]
# ## Attention moved, or values changed?
#
# A head's contribution is weights times values. Its drop splits exactly into a change of weights on the same values and a
# change of values under the same weights. An attention plot alone shows only the first part.

# %%
report.plot("split of the drop")

# %%
report.plot("parts of the drop")

# %% [markdown]
# ## Is it the cause?
#
# Cut the attention edges from the post-instruction positions to the suffix, in the top heads; patch the clean run's
# pattern, output or r̂ component into the suffixed run, and the other way round; keep the suffix and restore only the
# direction. Each is compared with random heads of the same layers and a random change of equal norm. 1 is the whole drop.

# %%
report.plot("causal tests")

# %%
print(rl.hijacking.mechanism(result).sentence)

# %% [markdown]
# The sentence says "because" only where the test passed: at least half of the drop comes back, beyond both controls,
# and attention rose. For the random words it says something else:

# %%
print(rl.hijacking.mechanism(report.results[-1]).sentence)

# %% [markdown]
# ## From tokens to refusal
#
# All of it in one figure: which token gains attention over the random token in its place, which heads then write less along
# the direction, and how much of the refusal metric returns when the direction is restored. Edges within chance are left
# out. The sentence names what makes attention turn to the suffix.

# %%
report.plot("circuit")

# %%
print(rl.hijacking.finding(result))

# %% [markdown]
# ## Which tokens?
#
# Leave out each token in turn and measure the metric again; below, what the top heads take from that token along the
# direction.

# %%
report.plot("tokens")

# %% [markdown]
# ## Could a defence see it?
#
# The projection on the direction separates harmful from harmless prompts until a suffix moves it. The maximum over the
# instruction's tokens would not be fooled if the harm were visible there; on this model it is not.

# %%
report.plot("detectors")

# %%
report.detectors.failures()

# %% [markdown]
# ## Now your own model
#
# Set the names and run the cell, with your own files of prompts and suffixes. Run long jobs on the command line, where
# they can resume: `refusal-lens hijack MODEL --suffixes F --direction RUN --out DIR`.

# %%
MODEL, SUFFIXES = None, "suffixes.jsonl"  # e.g. "Qwen/Qwen2.5-0.5B-Instruct"
if MODEL is not None:
    mine, prompts = rl.load_model(MODEL), rl.load_prompts("advbench", "alpaca")
    found = rl.find_direction(mine, prompts)
    report = rl.hijacking.investigate(mine, prompts, rl.SuffixSet.load(SUFFIXES), found)
    print(*(rl.hijacking.mechanism(result).sentence for result in report.results), sep="\n\n")
