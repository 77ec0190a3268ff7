"use strict";
(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const look = JSON.parse(document.getElementById("plotly-look").textContent);
  const PRINT_WIDTH = 690; // pixels: an A4 page between its margins
  const ink = () => getComputedStyle(root).getPropertyValue("--ink").trim();
  const settings = { responsive: true, displaylogo: false, showSendToCloud: false };
  const lazy = () => [...document.querySelectorAll(".plot, .widget")];
  const drawn = () => [...document.querySelectorAll(".plot[data-drawn]")];
  const part = (element, kind) => document.getElementById(element.id.replace(/-(plot|widget)$/, kind));

  // The figure in the colours of the page: text, and error bars that have no colour of their own.
  const figure = (plot) => {
    const { data, layout } = JSON.parse(part(plot, "-json").textContent);
    data.filter((trace) => trace.error_y).forEach((trace) => {
      trace.error_y = { color: ink(), thickness: 1.5, width: 5, ...trace.error_y };
    });
    return [data, { ...layout, template: look, font: { ...layout.font, color: ink() } }];
  };
  const draw = (plot) => {
    Plotly.newPlot(plot, ...figure(plot), settings);
    if (plot.dataset.picks) plot.on("plotly_click", (event) => {
      const point = event.points[0];
      const value = point.customdata ?? point.text;
      pick(document.getElementById(plot.dataset.picks), Array.isArray(value) ? value[0] : value, true);
    });
  };
  const view = (widget) => {
    const props = JSON.parse(part(widget, "-json").textContent);
    CircuitsVis.render(widget.id, CircuitsVis[widget.dataset.component], props);
    new MutationObserver(() => label(widget)).observe(widget, { childList: true, subtree: true });
    label(widget);
  };
  // CircuitsVis draws heads as unnamed pictures for the mouse: give them names, and the keyboard a way to them.
  const label = (widget) => widget.querySelectorAll("canvas:not([aria-label])").forEach((canvas) => {
    const tile = canvas.closest("div:has(> h2, > h4)");
    const name = tile?.querySelector("h2, h4").textContent ?? "";
    canvas.setAttribute("aria-label", `Attention pattern ${name}`.trim());
    if (!tile?.querySelector("h4")) return;
    tile.tabIndex = 0;
    tile.setAttribute("role", "button");
    tile.setAttribute("aria-label", `Show the attention of ${name}`);
    tile.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      tile.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
      tile.click();
    });
  });
  // A library is packed until it is first needed: so the page is small, and opens before it is compiled.
  const loading = new Map(), loaded = new Set();
  const unpack = async (kind) => {
    const packed = document.getElementById(`library-${kind}`);
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    packed.remove();
    const script = document.createElement("script");
    script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
    loaded.add(kind);
  };
  const load = (kind) => loading.get(kind) ?? loading.set(kind, unpack(kind)).get(kind);
  const show = (element) => {
    const plot = element.classList.contains("plot"), kind = plot ? "figure" : "widget";
    if (!loaded.has(kind)) return load(kind).then(() => element.isConnected && show(element));
    if (element.dataset.drawn) return;
    element.dataset.drawn = "1";
    (plot ? draw : view)(element);
  };
  // Figures are drawn when they come near the screen, so that a long report opens at once.
  const watcher = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => show(entry.target)),
    { rootMargin: "600px" });

  // Pickers: the alternatives wait in <template> elements; the chosen one is copied into the panel.
  const pick = (picker, value, scroll) => {
    const select = picker.querySelector("select");
    const index = [...select.options].findIndex((option) => option.value === value);
    const status = picker.querySelector(".controls [role=status]");
    if (index < 0) {
      status.textContent = `${value} is not in this list.`;
      return;
    }
    status.textContent = "";
    open(picker, index);
    if (scroll) picker.scrollIntoView({ block: "nearest" });
  };
  const open = (picker, index, follow = true) => {
    const panel = picker.querySelector(".panel");
    panel.querySelectorAll(".plot[data-drawn]").forEach((plot) => Plotly.purge(plot));
    const template = [...picker.children].filter((child) => child.tagName === "TEMPLATE")[index];
    panel.replaceChildren(template.content.cloneNode(true));
    const select = picker.querySelector("select");
    select.selectedIndex = index;
    picker.querySelector("[data-step='-1']").disabled = index === 0;
    picker.querySelector("[data-step='1']").disabled = index === select.length - 1;
    start(panel);
    if (follow && picker.dataset.sync)
      document.querySelectorAll(`.picker[data-sync="${picker.dataset.sync}"]`).forEach((other) => {
        const same = [...other.querySelector("select").options].findIndex((o) => o.value === select.value);
        if (other !== picker && same >= 0 && other.querySelector("select").selectedIndex !== same)
          open(other, same, false);
      });
  };
  const remembered = (picker) => {
    if (!picker.dataset.sync) return 0;
    const value = chosen.get(picker.dataset.sync);
    return Math.max(0, [...picker.querySelector("select").options].findIndex((o) => o.value === value));
  };
  const chosen = new Map();
  const start = (element) => {
    element.querySelectorAll(".plot, .widget").forEach((item) => watcher.observe(item));
    element.querySelectorAll("input[data-table]").forEach((input) => input.addEventListener("input", () => search(input)));
    element.querySelectorAll(".picker").forEach((picker) => {
      if (picker.dataset.started) return;
      picker.dataset.started = "1";
      const select = picker.querySelector("select");
      const go = (index) => {
        if (picker.dataset.sync) chosen.set(picker.dataset.sync, select.options[index].value);
        picker.querySelector(".controls [role=status]").textContent = "";
        open(picker, index);
      };
      select.addEventListener("change", () => go(select.selectedIndex));
      picker.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => {
        const index = select.selectedIndex + Number(button.dataset.step);
        if (index >= 0 && index < select.length) go(index);
      }));
      open(picker, remembered(picker), false);
    });
  };
  const search = (input) => {
    const words = input.value.toLowerCase();
    const rows = [...document.querySelectorAll(`#${input.dataset.table} tbody tr`)];
    rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(words); });
    const found = rows.filter((row) => !row.hidden).length;
    input.closest(".search").querySelector("[role=status]").textContent = words ? `${found} of ${rows.length} rows` : "";
  };

  const theme = document.getElementById("theme");
  const paint = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
    drawn().forEach((plot) => Plotly.react(plot, ...figure(plot), settings));
  };
  paint(system.matches);
  system.addEventListener("change", () => paint(system.matches));
  theme.addEventListener("click", () => paint(root.dataset.theme !== "dark"));

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const reader = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const link = links.get(entry.target.id);
    if (!link || !entry.isIntersecting) return;
    links.forEach((other) => other.removeAttribute("aria-current"));
    link.setAttribute("aria-current", "true");
    const list = link.closest("ul");
    list.scrollTo({ left: link.offsetLeft - list.offsetLeft - 24 });
  }), { rootMargin: "-25% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((section) => reader.observe(section));

  // On paper: every figure, in light colours, as wide as the page.
  let before = "light";
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    lazy().forEach(show);
    paint(false);
    drawn().forEach((plot) => Plotly.relayout(plot, { width: PRINT_WIDTH }));
  });
  window.addEventListener("afterprint", () => {
    paint(before === "dark");
    drawn().forEach((plot) => Plotly.relayout(plot, { width: null, autosize: true }));
  });
  start(document);
  // Libraries unpack, and CircuitsVis draws, a moment later than asked: too late for a page on its way to the printer.
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 500));
  window.addEventListener("load", () => idle(() => {
    if (document.querySelector(".plot")) load("figure");
    document.querySelectorAll(".widget").forEach(show);
  }));
})();
