"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const draw = (plot) => {
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "1";
    const figure = JSON.parse(document.getElementById(plot.id.replace(/-plot$/, "-json")).textContent);
    figure.layout.font = { ...figure.layout.font, color: ink() };
    Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displaylogo: false });
  };
  const view = (widget) => {
    if (widget.dataset.drawn) return;
    widget.dataset.drawn = "1";
    const props = JSON.parse(document.getElementById(widget.id.replace(/-widget$/, "-json")).textContent);
    CircuitsVis.render(widget.id, CircuitsVis[widget.dataset.component], props);
  };
  const show = (element) => (element.classList.contains("plot") ? draw(element) : view(element));
  const plots = [...document.querySelectorAll(".plot")];
  // Figures are drawn when they come near the screen, so that a long report opens at once.
  const watcher = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => show(entry.target)),
    { rootMargin: "600px" });
  const lazy = [...plots, ...document.querySelectorAll(".widget")];
  lazy.forEach((element) => watcher.observe(element));
  window.addEventListener("beforeprint", () => lazy.forEach(show));
  dark.addEventListener("change", () =>
    plots.filter((plot) => plot.dataset.drawn).forEach((plot) => Plotly.relayout(plot, { "font.color": ink() })));
  document.querySelectorAll("input[data-table]").forEach((input) => input.addEventListener("input", () => {
    const words = input.value.toLowerCase();
    document.querySelectorAll(`#${input.dataset.table} tbody tr`).forEach((row) => {
      row.hidden = !row.textContent.toLowerCase().includes(words);
    });
  }));
})();
