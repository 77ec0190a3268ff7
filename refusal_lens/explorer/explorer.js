const SKELETON = `
<form data-name="form" autocomplete="off">
  <label class="wide">request<textarea data-ask="request" rows="2"></textarea></label>
  <label>pick one<select data-pick="request"></select></label>
  <label class="wide">suffix, with its leading space<input data-ask="suffix" type="text"></label>
  <label>pick one<select data-pick="suffix"></select></label>
  <label>intervention<select data-ask="kind"></select></label>
  <label title="of capping, the ceiling: 0 the harmless mean projection, 1 the harmful one">strength
    <output data-name="strength"></output>
    <input data-ask="strength" type="range" min="0" max="2" step="0.05"></label>
  <label>where<select data-ask="scope"></select></label>
  <label>compare plain with<select data-ask="beside"></select></label>
</form>
<p class="error" role="alert" data-name="error" hidden></p>
<p class="note" data-name="note"></p>
<section><h3>Refusal</h3><div data-code="look"></div>
  <table><thead><tr><th>condition</th><th>refusal metric</th><th>reply</th></tr></thead>
  <tbody data-name="rows"></tbody></table>
  <div class="codes"><div data-code="metric"></div><div data-code="reply"></div></div></section>
<section><h3>Where the direction is</h3>
  <label class="inline">layer <output data-name="layer"></output>
    <input data-ask="layer" type="range" min="0" step="1"></label>
  <p class="hint">Red: towards refusal. Blue: away from it. No colour: inside the range of 39 random directions.
    Hover over a token to see which heads take something from it.</p>
  <div data-name="strips"></div><div class="figure" data-figure="map"></div><div data-code="map"></div></section>
<section class="two"><div><h3>What each token writes</h3><div class="figure" data-figure="sources"></div>
  <div data-code="sources"></div></div>
  <div><h3>The hovered token</h3><div class="figure" data-figure="token"></div></div></section>
<section><h3>Top heads by region</h3><div class="figure" data-figure="heads"></div><div data-code="heads"></div></section>
<section><h3>One head</h3>
  <label class="inline">head<select data-ask="head"></select></label>
  <label class="inline">show<select data-ask="measure"></select></label>
  <div class="figure" data-figure="pattern"></div><div data-code="pattern"></div></section>
<section data-name="suffixed"><h3>Why the suffix acts</h3>
  <label class="inline">measure<select data-ask="why"></select></label>
  <div class="figure" data-figure="why"></div><p class="hint" data-name="why"></p><div data-code="why"></div></section>`;

const FIGURES = ["map", "pattern", "heads", "sources", "token", "why"];

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, attributes);
  return made;
}

function options(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => element("option", text, { value })));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page without the right to the clipboard
    const area = element("textarea", undefined, { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => (button.textContent = "copy"), 2000);
}

function render({ model, el }) {
  const root = element("div", undefined, { className: "rl-explorer", innerHTML: SKELETON });
  el.append(root);
  const named = (name) => root.querySelector(`[data-name="${name}"]`);
  const field = (name) => root.querySelector(`[data-ask="${name}"]`);
  const numbers = ["strength", "layer"];
  let waiting = {};
  let timer;

  function ask(changes, wait) {
    waiting = { ...waiting, ...changes };
    clearTimeout(timer);
    timer = setTimeout(() => {
      root.classList.add("busy");
      model.set("asked", { ...model.get("asked"), ...waiting });
      waiting = {};
      model.save_changes();
    }, wait);
  }

  const { prompts, suffixes, kinds, scopes, measures, why, heads, layers } = model.get("choices");
  options(root.querySelector('[data-pick="request"]'), [["", "…"], ...prompts.map((text) => [text, text])]);
  const picks = suffixes.map(({ kind, text }) => [text, `${kind}: ${text.trim()}`]);
  options(root.querySelector('[data-pick="suffix"]'), [["", "none"], ...picks]);
  options(field("kind"), kinds.map((kind) => [kind, kind]));
  options(field("scope"), Object.entries(scopes).map(([name, words]) => [name, name === "all" ? words : name]));
  options(field("measure"), Object.entries(measures));
  options(field("why"), Object.entries(why));
  options(field("head"), [["", "the top one"], ...heads.map((head) => [head, head])]);
  field("layer").max = layers - 1;

  for (const input of root.querySelectorAll("[data-ask]")) {
    const name = input.dataset.ask;
    const typed = ["request", "suffix"].includes(name);
    input.value = model.get("asked")[name];
    if (name === "strength" || name === "layer") named(name).textContent = input.value;
    const send = (wait) => ask({ [name]: numbers.includes(name) ? Number(input.value) : input.value }, wait);
    input.addEventListener("input", () => {
      if (numbers.includes(name)) named(name).textContent = input.value;
      send(typed ? 450 : numbers.includes(name) ? 60 : 0);
    });
  }
  for (const select of root.querySelectorAll("[data-pick]")) {
    select.addEventListener("input", () => {
      if (!select.value && select.dataset.pick === "request") return;
      field(select.dataset.pick).value = select.value;
      ask({ [select.dataset.pick]: select.value }, 0);
    });
  }
  named("form").addEventListener("submit", (event) => event.preventDefault());
  // JupyterLab's shortcuts of single keys are not meant for what is typed here; saving is.
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });

  for (const place of root.querySelectorAll("[data-code]")) {
    const details = element("details", undefined, { className: "code" });
    const names = { look: "the whole look as code", reply: "a reply as code", metric: "the metric as code" };
    const button = element("button", "copy", { type: "button" });
    button.addEventListener("click", () => copy(model.get("shown").code[place.dataset.code], button));
    details.append(element("summary", names[place.dataset.code] ?? "as code"), element("pre"), button);
    place.append(details);
  }

  function show() {
    const shown = model.get("shown");
    root.classList.remove("busy");
    named("error").hidden = !shown.error;
    named("error").textContent = shown.error ?? "";
    root.classList.toggle("stale", Boolean(shown.error));
    if (!shown.rows) return;
    named("suffixed").hidden = !shown.rows.some((row) => row.condition === "adversarial");
    named("note").textContent = [`read in ${shown.seconds} s`, ...shown.notes].join(" · ");
    named("rows").replaceChildren(...shown.rows.map(row));
    named("strips").replaceChildren(...shown.strips.map(strip));
    const others = shown.rows.map((row) => row.condition).filter((name) => name !== "baseline");
    options(field("beside"), [["", "what changes it"], ...others.map((name) => [name, name.replaceAll("_", " ")])]);
    field("beside").value = others.includes(model.get("asked").beside) ? model.get("asked").beside : "";
    field("head").options[0].textContent = model.get("asked").head ? "the top one" : shown.head;
    for (const place of root.querySelectorAll("[data-code]")) {
      place.hidden = !shown.code[place.dataset.code];
      place.querySelector("pre").textContent = shown.code[place.dataset.code];
    }
    answers();
  }

  function row(found) {
    const made = element("tr", undefined, { className: found.control ? "control" : "" });
    made.dataset.condition = found.condition;
    const name = element("td", found.name);
    name.prepend(element("i", "", { className: "chip", style: `background:${found.colour}` }));
    const metric = element("td", `${found.metric.toFixed(2)} `, { className: "metric" });
    metric.append(element("b", found.refused ? "refuses" : "answers", { className: found.refused ? "refuses" : "answers" }));
    made.append(name, metric, element("td", found.reply, { className: "reply" }));
    return made;
  }

  function answers() {
    for (const [condition, reply] of Object.entries(model.get("answers"))) {
      const cell = root.querySelector(`tr[data-condition="${condition}"] .reply`);
      if (cell) cell.textContent = reply;
    }
  }

  let hovering;
  function strip(found) {
    const made = element("div", undefined, { className: "strip" });
    made.append(element("span", found.name, { className: "name" }));
    found.tokens.forEach((token, index) => {
      const span = element("span", token.text, { className: `token ${token.region}`, title: token.hint });
      span.style.background = token.colour || "transparent";
      if (token.read) {
        span.addEventListener("mouseenter", () => {
          clearTimeout(hovering);
          hovering = setTimeout(() => {
            model.set("hovered", [found.condition, index]);
            model.save_changes();
          }, 120);
        });
      }
      made.append(span);
    });
    return made;
  }

  function draw(name) {
    const place = root.querySelector(`[data-figure="${name}"]`);
    const figure = model.get(name);
    if (name === "why") named("why").textContent = figure.text ?? "";
    if (!figure.data) {
      Plotly.purge(place);
      place.textContent = figure.error ?? "";
      return;
    }
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    Plotly.react(place, figure.data, { ...figure.layout, autosize: true }, { displaylogo: false, responsive: true });
  }

  model.on("change:shown", show);
  model.on("change:answers", answers);
  FIGURES.forEach((name) => model.on(`change:${name}`, () => draw(name)));
  show();
  FIGURES.forEach(draw);
  const resized = new ResizeObserver(() => {
    root.querySelectorAll(".js-plotly-plot").forEach((place) => Plotly.Plots.resize(place));
  });
  resized.observe(root);
  return () => {
    resized.disconnect();
    root.querySelectorAll(".js-plotly-plot").forEach((place) => Plotly.purge(place));
  };
}

export default { render };
