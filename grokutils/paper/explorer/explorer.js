// Draws the explorer (grokutils/explorer.py) as SVG: no dependencies, nothing fetched, nothing drawn but what the
// page's own data hold.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.currentScript.closest(".grok-explorer");
  const data = JSON.parse(root.querySelector(".gx-data").textContent);
  const slider = root.querySelector(".gx-slider");
  const charts = root.querySelector(".gx-charts");
  const log10 = x => Math.log10(Math.max(x, 1e-300));
  const comma = new Intl.NumberFormat("en-US");
  const fixed = (x, digits) => (x === null ? "none" : x.toFixed(digits));
  const known = values => values.filter(x => x !== null);

  const element = (name, attributes, text) => {
    const e = document.createElementNS(SVG, name);
    for (const key in attributes) e.setAttribute(key, attributes[key]);
    if (text !== undefined) e.textContent = text;
    return e;
  };

  // -- axes -------------------------------------------------------------------------------------------------

  // A scale takes a value to a place between 0 and 1. Logarithmic ones are given the logarithms of their ends.
  const linear = (low, high) => {
    const span = high - low || 1;
    const size = 10 ** Math.floor(Math.log10(span / 3));
    const every = [1, 2, 5, 10].map(k => k * size).find(s => span / s <= 5);
    const ticks = [];
    for (let k = Math.ceil(low / every - 1e-9); k * every <= high + 1e-9 * span; k++) {
      ticks.push([k * every, String(+(k * every).toPrecision(6))]);
    }
    return { place: x => (x - low) / span, ticks };
  };
  const SUPERSCRIPTS = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  const power = k =>
    k >= -2 && k <= 3 ? String(+(10 ** k).toPrecision(3)) : "10" + [...String(k)].map(c => SUPERSCRIPTS[c]).join("");
  const logarithmic = (low, high) => {
    const ticks = [];
    const skip = Math.ceil((high - low) / 7);
    for (let k = Math.ceil(low); k <= high; k++) if (k % skip === 0) ticks.push([10 ** k, power(k)]);
    if (ticks.length < 3) {
      for (let k = Math.floor(low); k <= high; k++) {
        for (const f of [2, 5]) {
          if (log10(f * 10 ** k) > low && log10(f * 10 ** k) < high) ticks.push([f * 10 ** k, String(+(f * 10 ** k).toPrecision(2))]);
        }
      }
    }
    return { place: x => (log10(x) - low) / (high - low), ticks };
  };

  // A figure with axes; `draw(pen, i)` puts what depends on the step into it.
  const panel = ({ title, describe, x, y, xLabel, yLabel, wide, fixedParts, draw }) => {
    const figure = document.createElement("figure");
    if (wide) figure.className = "gx-wide";
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    const svg = element("svg", { role: "img" });
    figure.append(caption, svg);
    charts.append(figure);
    let pen = null;

    const layout = () => {
      const width = Math.max(figure.clientWidth, 240), height = wide ? 230 : 240;
      const left = 60, right = 12, top = 20, bottom = 42;
      const w = width - left - right, h = height - top - bottom;
      const clamp = t => Math.min(Math.max(t, -0.02), 1.02);
      pen = {
        svg: null,
        x: v => left + w * clamp(x.place(v)),
        y: v => top + h * (1 - clamp(y.place(v))),
        left, top, right: left + w, bottom: top + h,
        add(name, attributes, text) {
          const e = element(name, attributes, text);
          this.svg.append(e);
          return e;
        },
        line(points, attributes) {
          let path = "", on = false;
          for (const [a, b] of points) {
            if (b === null) { on = false; continue; }
            path += `${on ? "L" : "M"}${this.x(a).toFixed(1)} ${this.y(b).toFixed(1)}`;
            on = true;
          }
          return this.add("path", { fill: "none", d: path, ...attributes });
        },
        upright(v, attributes) {
          this.add("line", { x1: this.x(v), x2: this.x(v), y1: this.top, y2: this.bottom, ...attributes });
        },
      };
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const back = element("g", {}), front = element("g", {});
      svg.append(back, front);
      pen.svg = back;
      if (fixedParts) fixedParts(pen);
      for (const [v, text] of x.ticks) {
        pen.upright(v, { class: "grid" });
        pen.add("text", { x: pen.x(v), y: pen.bottom + 16, "text-anchor": "middle", class: "soft" }, text);
      }
      for (const [v, text] of y.ticks) {
        pen.add("line", { x1: pen.left, x2: pen.right, y1: pen.y(v), y2: pen.y(v), class: "grid" });
        pen.add("text", { x: pen.left - 6, y: pen.y(v) + 4, "text-anchor": "end", class: "soft" }, text);
      }
      pen.add("path", { class: "axis", d: `M${pen.left} ${pen.top}V${pen.bottom}H${pen.right}` });
      pen.add("text", { x: (pen.left + pen.right) / 2, y: pen.bottom + 35, "text-anchor": "middle" }, xLabel);
      const middle = (pen.top + pen.bottom) / 2;
      pen.add("text", { x: 10, y: middle, "text-anchor": "middle", transform: `rotate(-90 10 ${middle})` }, yLabel);
      pen.svg = front;
    };
    return {
      layout,
      show(i) {
        pen.svg.replaceChildren();
        draw(pen, i);
        svg.setAttribute("aria-label", `${title}. ${describe(i)}`);
      },
    };
  };

  // -- the panels -------------------------------------------------------------------------------------------

  const { steps, curve, layers } = data;
  const last = Math.max(steps[steps.length - 1], curve.step[curve.step.length - 1], 10);
  const stepAxis = logarithmic(0, log10(last));
  const at = i => Math.max(steps[i], 1); // step 0 has no place on a logarithmic axis
  const accuracyAt = (which, i) => {
    let k = curve.step.findIndex(s => s >= steps[i]);
    if (k < 0) k = curve.step.length - 1;
    return curve[which][k];
  };
  const label = (pen, x, y, text, color, anchor = "start") =>
    pen.add("text", { x, y, "text-anchor": anchor, style: `fill:${color};font-weight:600` }, text);

  const accuracies = () => panel({
    title: "Accuracy over training",
    describe: i => `At step ${comma.format(steps[i])} training accuracy ${fixed(accuracyAt("train", i), 3)}, ` +
      `test accuracy ${fixed(accuracyAt("test", i), 3)}.`,
    x: stepAxis, y: linear(0, 1), xLabel: "optimisation step (log scale)", yLabel: "accuracy", wide: true,
    fixedParts: pen => {
      for (const phase of data.phases) {
        const from = pen.x(Math.max(phase.from, 1)), to = pen.x(Math.max(phase.to, 1));
        pen.add("rect", {
          x: from, width: Math.max(to - from, 0), y: pen.top, height: pen.bottom - pen.top,
          style: `fill:${phase.color};fill-opacity:var(--gx-tint)`,
        });
        if (to - from > 7.5 * phase.name.length) {
          pen.add("text", { x: (from + to) / 2, y: pen.bottom - 6, "text-anchor": "middle", class: "soft" }, phase.name);
        }
      }
      for (const which of ["train", "test"]) {
        pen.line(curve.step.map((s, k) => [Math.max(s, 1), curve[which][k]]),
          { style: `stroke:var(--gx-${which})`, "stroke-width": 2, class: which });
      }
      label(pen, pen.left + 8, pen.top + 16, "training", "var(--gx-train)");
      label(pen, pen.left + 8, pen.top + 32, "test", "var(--gx-test)");
    },
    draw: (pen, i) => {
      pen.upright(at(i), { class: "cursor" });
      for (const which of ["train", "test"]) {
        pen.add("circle", { cx: pen.x(at(i)), cy: pen.y(accuracyAt(which, i)), r: 4.5, style: `fill:var(--gx-${which})` });
      }
    },
  });

  const edges = h => h.counts[0].map((_, k) => [h.low + ((h.high - h.low) * k) / h.counts[0].length,
    h.low + ((h.high - h.low) * (k + 1)) / h.counts[0].length].map(e => 10 ** e));

  const bars = (pen, bins, heights, floor, color) => {
    bins.forEach(([from, to], k) => {
      if (!(heights[k] > 0)) return;
      const top = pen.y(heights[k]), bottom = floor === null ? pen.bottom : pen.y(floor);
      pen.add("rect", { x: pen.x(from), width: Math.max(pen.x(to) - pen.x(from) - 0.6, 0.6), y: top,
        height: Math.max(bottom - top, 0), style: `fill:${color}`, class: "bar" });
    });
  };

  const spectrum = layer => {
    const bins = edges(layer.esd);
    const density = i => layer.esd.counts[i].map((c, k) => c / (layer.esd.of[i] || 1) / (bins[k][1] - bins[k][0]));
    let low = Infinity, high = -Infinity;
    steps.forEach((_, i) => density(i).forEach(d => { if (d > 0) { low = Math.min(low, d); high = Math.max(high, d); } }));
    if (!(high > 0)) { low = 0.1; high = 1; }
    const floor = low / 2;
    return panel({
      title: `${layer.label}: eigenvalues and power-law tail`,
      describe: i => layer.alpha[i] === null ? "No power law could be fitted." :
        `Alpha ${fixed(layer.alpha[i], 2)}; the tail of ${layer.tail[i]} of ${layer.n} eigenvalues starts at ` +
        `${layer.xmin[i]}; the largest is ${layer.largest[i]}.`,
      x: logarithmic(layer.esd.low, layer.esd.high), y: logarithmic(log10(floor), log10(high) + 0.2),
      xLabel: "eigenvalue of WᵀW (log scale)", yLabel: "density (log scale)",
      draw: (pen, i) => {
        bars(pen, bins, density(i), null, "var(--gx-esd)");
        const alpha = layer.alpha[i], xmin = layer.xmin[i];
        if (alpha === null || !layer.largest[i]) return label(pen, pen.right, pen.top - 6, "no fit", "var(--gx-fit)", "end");
        const start = (layer.tail[i] / layer.n) * (alpha - 1) / xmin;
        const law = x => start * (x / xmin) ** -alpha;
        pen.upright(xmin, { class: "mark" });
        // a power law is straight here; it ends at the largest eigenvalue or at the bottom of the picture
        const end = Math.min(layer.largest[i], xmin * (start / floor) ** (1 / alpha));
        pen.line([xmin, Math.max(end, xmin)].map(x => [x, law(x)]), { class: "fit" });
        label(pen, pen.right, pen.top - 6, `α = ${fixed(alpha, 2)}`, "var(--gx-fit)", "end");
      },
    });
  };

  const shuffled = layer => {
    const bins = edges(layer.shuffled), width = log10(bins[0][1] / bins[0][0]);
    const share = i => layer.shuffled.counts[i].map(c => c / (layer.shuffled.of[i] || 1) / width);
    const Q = Math.max(layer.rows, layer.columns) / Math.min(layer.rows, layer.columns);
    // Marchenko-Pastur, per decade: x ln(10) times the density (grokutils/spectra/marchenko_pastur.py)
    const law = (x, i) => {
      const a = layer.low[i], b = layer.high[i], s = layer.sigma[i];
      return x <= a || x >= b ? 0 : (Math.LN10 * Q * Math.sqrt((b - x) * (x - a))) / (2 * Math.PI * s * s);
    };
    let most = 0;
    steps.forEach((_, i) => { most = Math.max(most, ...share(i)); });
    return panel({
      title: `${layer.label}, shuffled: eigenvalues and random bulk`,
      describe: i => layer.sigma[i] === null ? "No bulk could be fitted." :
        `The bulk ends at ${layer.high[i]}, in units of the mean eigenvalue; ` +
        `${layer.outside[i].length} eigenvalues of the shuffle shown lie beyond the threshold ${layer.threshold[i]}.`,
      x: logarithmic(layer.shuffled.low, layer.shuffled.high), y: linear(0, most * 1.08 || 1),
      xLabel: "eigenvalue over the mean (log scale)", yLabel: "share per decade",
      draw: (pen, i) => {
        bars(pen, bins, share(i), 0, "var(--gx-shuffled)");
        if (layer.sigma[i] === null) return label(pen, pen.right, pen.top - 6, "no fit", "var(--gx-fit)", "end");
        const a = Math.max(layer.low[i], 10 ** layer.shuffled.low), b = layer.high[i];
        const points = [];
        for (let k = 0; k <= 120; k++) {
          const x = a * (b / a) ** (k / 120);
          points.push([x, law(x, i)]);
        }
        pen.line(points, { class: "fit" });
        pen.upright(layer.threshold[i], { class: "mark" });
        for (const x of layer.outside[i]) {
          const px = pen.x(x);
          pen.add("path", { class: "trap", d: `M${px} ${pen.bottom - 1}l-5 -10h10z` });
        }
        label(pen, pen.right, pen.top - 6, `traps: ${fixed(layer.traps[i], 1)}`, "var(--gx-fit)", "end");
      },
    });
  };

  // A quantity of all layers, drawn up to the step of the slider.
  const soFar = ({ title, column, yLabel, y, line }) => panel({
    title, x: stepAxis, y, xLabel: "optimisation step (log scale)", yLabel,
    describe: i => layers.map(l => `${l.label} ${fixed(l[column][i], 2)}`).join(", ") + ` at step ${comma.format(steps[i])}.`,
    fixedParts: pen => {
      if (line !== undefined) pen.add("line", { x1: pen.left, x2: pen.right, y1: pen.y(line), y2: pen.y(line), class: "two" });
    },
    draw: (pen, i) => {
      pen.upright(at(i), { class: "cursor" });
      layers.forEach((layer, k) => {
        const points = steps.slice(0, i + 1).map((_, j) => [at(j), layer[column][j]]);
        pen.line(points, { style: `stroke:${layer.color}`, "stroke-width": 2, class: `so-far ${layer.name}` });
        if (layer[column][i] !== null) {
          pen.add("circle", { cx: pen.x(at(i)), cy: pen.y(layer[column][i]), r: 4.5, style: `fill:${layer.color}` });
        }
        label(pen, pen.left + 8, pen.top + 14 + 16 * k, layer.label, layer.color);
      });
    },
  });

  const most = column => Math.max(1, ...layers.flatMap(l => known(l[column])));
  const highAlpha = Math.min(most("alpha"), 15); // random matrices can have any alpha; what matters is lower
  const cut = most("alpha") > highAlpha ? ", cut at 15" : "";
  const panels = [
    accuracies(),
    ...layers.flatMap(layer => [spectrum(layer), shuffled(layer)]),
    soFar({ title: "Alpha so far, and alpha = 2", column: "alpha", yLabel: "alpha" + cut, y: linear(1, Math.max(highAlpha, 3)), line: 2 }),
    soFar({ title: "Traps so far", column: "traps", yLabel: "traps, mean over shuffles", y: linear(0, most("traps") * 1.1) }),
  ];

  const show = () => {
    const i = +slider.value;
    const step = comma.format(steps[i]);
    slider.setAttribute("aria-valuetext", `step ${step}`);
    root.querySelector(".gx-step").textContent = step;
    root.querySelector(".gx-readout").textContent =
      `Step ${step}: training accuracy ${fixed(accuracyAt("train", i), 3)}, test accuracy ${fixed(accuracyAt("test", i), 3)}. ` +
      layers.map(l => `${l.label}: alpha ${fixed(l.alpha[i], 2)}, traps ${fixed(l.traps[i], 1)}, ` +
        `largest weight ${fixed(l.max_over_std[i], 1)} standard deviations.`).join(" ");
    panels.forEach(p => p.show(i));
  };
  const redraw = () => {
    panels.forEach(p => p.layout());
    show();
  };
  slider.addEventListener("input", show);
  let width = 0;
  new ResizeObserver(() => {
    if (charts.clientWidth !== width) {
      width = charts.clientWidth;
      redraw();
    }
  }).observe(charts);
  redraw();
})();
