// One chart: lines with a running mean, or stacked areas (stack.js). A chart is a slider over the steps: pointer and arrow
// keys move a cursor, which every other chart follows, and the legend reads out the values there.

const TOP = 8, BOTTOM = 22, RIGHT = 10;
const DASHES = { 2: "6 3", 4: "2 3", 6: "6 3", 8: "2 3", positive: "6 3", benign: "2 3" };
const charts = [];

class Chart {
  constructor(figure, data) {
    this.data = data;
    this.legend = figure.querySelector(".legend");
    this.plot = figure.querySelector(".plot");
    this.steps = [...new Set(data.series.flatMap((one) => one.x))].sort((a, b) => a - b);
    this.isStack = data.kind === "stack";
    this.isWhole = data.series.every((one) => one.y.every(Number.isInteger) && !one.smooth);
    this.isPlain = data.series.length === 1 && data.series[0].label === data.title;  // the title says it all
    this.writeLegend();
    this.listen();
    new ResizeObserver(perFrame(() => this.redraw())).observe(this.plot);
    const about = figure.querySelector(".about");
    about.addEventListener("toggle", () => this.writeTable(about.querySelector(".data")), { once: true });
    this.plot.setAttribute("aria-valuemin", this.steps[0]);
    this.plot.setAttribute("aria-valuemax", this.steps.at(-1));
    this.rest();
  }

  writeLegend() {
    this.values = this.data.series.map((one) => {
      const sample = this.isStack
        ? draw("rect", { x: 3, y: 0, width: 9, height: 9, rx: 2, fill: "var(--tone)" })
        : draw("line", { x1: 1, x2: 21, y1: 4.5, y2: 4.5, "stroke-dasharray": DASHES[one.tone] });
      const value = make("span", { class: "at" });
      const icon = draw("svg", { viewBox: this.isStack ? "0 0 14 9" : "0 0 22 9", "aria-hidden": "true", class: `tone-${one.tone}` }, sample);
      const name = make("span", { class: "name", title: one.label }, one.label);
      this.legend.append(this.isPlain ? make("li", { class: "plain" }, value) : make("li", {}, icon, name, value));
      return value;
    });
  }

  listen() {
    this.plot.addEventListener("pointermove", (event) => {
      const box = this.plot.getBoundingClientRect();
      if (this.stepAt) follow(this.steps[nearest(this.steps, this.stepAt(event.clientX - box.left))]);
    });
    this.plot.addEventListener("pointerleave", () => follow(null));
    this.plot.addEventListener("blur", () => follow(null));
    this.plot.addEventListener("keydown", (event) => {
      const last = this.steps.length - 1;
      const at = this.step === null ? last : nearest(this.steps, this.step);
      const moves = {
        ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
        PageDown: at - 10, PageUp: at + 10, Home: 0, End: last,
      };
      if (event.key === "Escape") moveTo(null);
      if (!(event.key in moves)) return;
      event.preventDefault();
      moveTo(this.steps[Math.min(last, Math.max(0, moves[event.key]))]);
    });
  }

  redraw() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (!width || (width === this.width && height === this.height)) return;
    this.width = width;
    this.bottom = height - BOTTOM;
    this.height = height;
    const [low, high] = this.isStack ? stackBounds(this.data.series) : lineBounds(this.data.series);
    const marks = ticks(low, high, 4).filter((value) => value >= low && value <= high);
    const texts = marks.map((value) => tickText(value, marks));
    const left = 10 + 6.4 * Math.max(...texts.map((text) => text.length));
    const [first, last] = [this.steps[0], this.steps.at(-1)];
    this.across = linear(first, last, left, width - RIGHT);
    this.upward = linear(low, high, this.bottom, TOP);
    this.stepAt = linear(left, width - RIGHT, first, last);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });
    marks.forEach((value, index) => {
      const y = this.upward(value);
      svg.append(
        draw("line", { class: value === 0 ? "axis" : "grid", x1: left, x2: width - RIGHT, y1: y, y2: y }),
        draw("text", { x: left - 6, y: y + 3.5, "text-anchor": "end" }, texts[index]),
      );
    });
    const wanted = ticks(first, last, Math.max(2, Math.floor(width / 90))).filter((step) => step >= first && step <= last);
    for (const step of wanted) {
      if (Number.isInteger(step)) svg.append(draw("text", { x: this.across(step), y: height - 5, "text-anchor": "middle" }, String(step)));
    }
    svg.append(...(this.isStack ? areas(this) : this.lines()), ...this.marks());
    this.overlay = draw("g");
    svg.append(this.overlay);
    this.plot.replaceChildren(svg);
    this.show(this.step);
  }

  lines() {
    return this.data.series.flatMap((one) => {
      const path = (values) => values.map((y, index) => `${index ? "L" : "M"}${this.across(one.x[index]).toFixed(1)} ${this.upward(y).toFixed(1)}`).join("");
      const group = draw("g", { class: `tone-${one.tone}` });
      if (one.smooth) group.append(draw("path", { class: "raw", d: path(one.y) }));
      group.append(draw("path", { class: "strong", d: path(one.smooth ?? one.y), "stroke-dasharray": DASHES[one.tone] }));
      if (one.x.length === 1) group.append(draw("circle", { class: "point", r: 3, cx: this.across(one.x[0]), cy: this.upward(one.y[0]) }));
      return group;
    });
  }

  marks() {
    return this.data.marks.flatMap((mark) => {
      const x = this.across(mark.x), isLate = x > this.width * 0.6;
      return [
        draw("line", { class: "mark", x1: x, x2: x, y1: TOP, y2: this.bottom }),
        draw("text", { class: "mark-name", x: x + (isLate ? -4 : 4), y: TOP + 8, "text-anchor": isLate ? "end" : "start" }, mark.label),
      ];
    });
  }

  // Puts the cursor on the measurement nearest to `step`; null takes it away.
  show(step) {
    this.step = step;
    if (step === null) return this.rest();
    const here = this.steps[nearest(this.steps, step)];
    const read = this.data.series.map((one, index) => {
      const at = nearest(one.x, step);
      this.values[index].textContent = shown(one.y[at], this.isWhole);
      return { one, at };
    });
    this.plot.setAttribute("aria-valuenow", here);
    this.plot.setAttribute("aria-valuetext", `step ${here}: ${read.map(({ one, at }) => `${one.label} ${shown(one.y[at], this.isWhole)}`).join(", ")}`);
    if (!this.overlay) return;
    const x = this.across(here);
    const points = this.isStack ? [] : read.map(({ one, at }) => draw("circle", { class: `point tone-${one.tone}`, r: 3.5, cx: this.across(one.x[at]), cy: this.upward(one.y[at]) }));
    this.overlay.replaceChildren(
      draw("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: this.bottom }),
      draw("text", { class: "cursor-step", x: Math.min(x, this.width - 26), y: this.height - 5, "text-anchor": "middle" }, `step ${here}`),
      ...points,
    );
  }

  // Without a cursor the legend says where each line began and ended.
  rest() {
    this.step = null;
    const ends = this.data.series.map((one, index) => {
      const line = one.smooth ?? one.y;
      const [first, last] = [shown(line[0], this.isWhole), shown(line.at(-1), this.isWhole)];
      const text = this.isStack ? "" : line.length > 1 ? `${first} → ${last}` : first;
      this.values[index].textContent = text;
      return `${one.label} ${text}`;
    });
    this.plot.setAttribute("aria-valuenow", this.steps.at(-1));
    this.plot.setAttribute("aria-valuetext", ends.join(", "));
    this.overlay?.replaceChildren();
  }

  writeTable(place) {
    const at = this.data.series.map((one) => new Map(one.x.map((step, index) => [step, one.y[index]])));
    const head = make("tr", {}, ...["step", ...this.data.series.map((one) => one.label)].map((text) => make("th", { scope: "col" }, text)));
    const rows = this.steps.map((step) => make(
      "tr", {}, make("th", { scope: "row" }, String(step)),
      ...at.map((values) => make("td", {}, values.has(step) ? shown(values.get(step), this.isWhole) : "")),
    ));
    place.setAttribute("tabindex", "0");
    place.setAttribute("role", "region");
    place.setAttribute("aria-label", `Data of ${this.data.title}`);
    place.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }
}

function lineBounds(series) {
  const values = series.flatMap((one) => one.y);
  let low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && low < 0.35 * high) low = 0;
  if (high < 0 && high > 0.35 * low) high = 0;
  if (low === high) return [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  const air = 0.05 * (high - low);
  return [low === 0 ? 0 : low - air, high === 0 ? 0 : high + air];
}

function moveTo(step) {
  for (const chart of charts) chart.show(step);
}

const follow = perFrame(moveTo);  // a pointer moves more often than the screen is drawn
