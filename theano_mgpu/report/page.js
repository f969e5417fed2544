// What is under the pointer: the curves' nearest points, in words, below each chart. Without it nothing is missing.
"use strict";
for (const chart of document.querySelectorAll("figure.chart")) {
  const svg = chart.querySelector("svg"), readout = chart.querySelector(".readout");
  const pointer = svg.querySelector(".pointer");
  const curves = [...svg.querySelectorAll("polyline[data-values]")].map((line) => ({
    name: line.dataset.name,
    xs: [...line.points].map((point) => point.x),
    values: line.dataset.values.split("|"),
    labels: line.dataset.labels.split("|"),
  }));
  const longest = curves.reduce((best, curve) => (curve.xs.length > best.xs.length ? curve : best), curves[0]);
  let place = longest.xs.length - 1;

  const nearest = (xs, x) => xs.reduce((best, other, i) => (Math.abs(other - x) < Math.abs(xs[best] - x) ? i : best), 0);
  const show = (i) => {
    place = Math.max(0, Math.min(i, longest.xs.length - 1));
    const x = longest.xs[place];
    const said = curves.map((curve) => {
      const i = nearest(curve.xs, x), label = curve.labels[i];
      const elsewhere = label === longest.labels[place] ? "" : ` (${label.split(" · ")[0]})`;
      return (curves.length > 1 ? `${curve.name} ` : "") + curve.values[i] + elsewhere;
    });
    readout.textContent = `${longest.labels[place]}: ${said.join(", ")}`;
    pointer.setAttribute("x1", x);
    pointer.setAttribute("x2", x);
    pointer.setAttribute("y2", svg.viewBox.baseVal.height - 36);
    pointer.classList.add("shown");
  };
  const hide = () => {
    readout.textContent = "";
    pointer.classList.remove("shown");
  };
  const follow = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(nearest(longest.xs, at.x));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) {
      show(place + by);
      event.preventDefault();
    }
  });
}
