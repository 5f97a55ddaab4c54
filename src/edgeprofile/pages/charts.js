// The last minutes as pictures: what is stacked, and how long it took.

import { clock, count, drawn, element, latency, rate, write } from "./elements.js";

// The least of these that all stretches fit into is shown.
const SPANS_S = [120, 300, 600];
const HEIGHT = 168;
const MARGIN = { left: 50, right: 8, top: 10, bottom: 22 };
const STEP_S = 2;
// Two stretches that lie so far apart have something between them.
const GAP_S = 0.5;

/** A card with a title, a figure, a drawing and a legend. Pointer or arrow keys choose a moment to read off. */
class Chart {
  constructor(title) {
    this.stretches = [];
    this.now = 0;
    this.chosen = null;
    this.title = title;
    this.when = element("span", { className: "faint" });
    this.picture = drawn("svg", { class: "picture", tabindex: "0", role: "img", height: HEIGHT });
    this.legend = element("ul", { className: "legend" });
    this.spoken = element("p", { className: "unseen", role: "status" });
    this.heading = element("div", { className: "heading" }, element("h3", { textContent: title }), this.when);
    this.root = element("figure", { className: "card chart" }, this.heading, this.picture, this.legend, this.spoken);
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.choose(null));
    this.picture.addEventListener("keydown", (event) => this.press(event));
    this.picture.addEventListener("blur", () => this.choose(null));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  show(stretches, now) {
    this.stretches = stretches;
    this.now = now;
    this.draw();
  }

  // --- reading off ---

  point(event) {
    const x = event.clientX - this.picture.getBoundingClientRect().left - MARGIN.left;
    const at = this.now - this.span + (x / this.inner) * this.span;
    const covers = (stretch) => at > stretch.at - stretch.seconds - GAP_S && at <= stretch.at;
    this.choose(this.stretches.find(covers) ?? null);
  }

  press(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, Escape: null }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const last = this.stretches.length - 1;
    const from = this.chosen ? this.stretches.indexOf(this.chosen) : last + 1;
    this.choose(step === null ? null : this.stretches[Math.min(last, Math.max(0, from + step))] ?? null);
    write(this.spoken, this.chosen ? `${clock(this.chosen.at)}: ${this.told(this.chosen)}` : "");
  }

  choose(stretch) {
    if (this.chosen === stretch) return;
    this.chosen = stretch;
    this.draw();
  }

  // --- drawing ---

  x(at) {
    return MARGIN.left + Math.max(0, 1 - (this.now - at) / this.span) * this.inner;
  }

  draw() {
    const width = this.root.clientWidth - 32;
    if (width <= 0) return;
    this.inner = width - MARGIN.left - MARGIN.right;
    this.bottom = HEIGHT - MARGIN.bottom;
    const oldest = this.stretches[0] ?? { at: this.now, seconds: 0 };
    this.span = SPANS_S.find((span) => span >= this.now - oldest.at + oldest.seconds - STEP_S) ?? SPANS_S.at(-1);
    // One that has gone from the window is chosen no more.
    if (this.chosen && !this.stretches.includes(this.chosen)) this.chosen = null;
    const read = this.chosen ?? this.stretches.at(-1);
    write(this.when, this.chosen ? clock(this.chosen.at) : "now");
    this.picture.setAttribute("width", width);
    const told = read ? this.told(read) : "nothing";
    this.picture.setAttribute("aria-label", `${this.title}, the last minutes. Now: ${told}`);
    const minutes = this.span / 60;
    const axis = [`${minutes} min ago`, `${minutes / 2} min`, "now"].map((text, at) => {
      const anchor = ["start", "middle", "end"][at];
      return drawn("text", { x: MARGIN.left + (this.inner * at) / 2, y: HEIGHT - 5, "text-anchor": anchor }, text);
    });
    this.picture.replaceChildren(...this.content(), ...axis, ...this.cursor());
    this.legend.replaceChildren(...this.entries(read));
  }

  cursor() {
    if (!this.chosen) return [];
    const x = this.x(this.chosen.at - this.chosen.seconds / 2);
    return [drawn("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.bottom, class: "cursor" })];
  }

  gridline(y, text) {
    return [
      drawn("line", { x1: MARGIN.left, x2: MARGIN.left + this.inner, y1: y, y2: y, class: "grid" }),
      drawn("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, text),
    ];
  }

  /** The stretches in runs without a gap between them, of those that `fits`. */
  runs(fits) {
    const found = [];
    let last = null;
    for (const stretch of this.stretches) {
      if (fits(stretch)) {
        if (!last || stretch.at - stretch.seconds - last.at > GAP_S) found.push([]);
        found.at(-1).push(stretch);
      }
      last = fits(stretch) ? stretch : null;
    }
    return found;
  }

  /** The upper edge of a run, from left to right, as a stair. */
  stair(run, y) {
    return run.flatMap((stretch, at) => {
      const left = at ? run[at - 1].at : stretch.at - stretch.seconds;
      return [left, stretch.at].map((end) => `${this.x(end).toFixed(1)} ${y(stretch).toFixed(1)}`);
    });
  }

  /** What lies between two edges, of each run. */
  between(runs, upper, lower) {
    const outlines = runs.map((run) => [...this.stair(run, upper), ...this.stair(run, lower).reverse()]);
    return outlines.map((points) => `M${points.join("L")}Z`).join("");
  }
}

function key(name, className, value) {
  return element(
    "li",
    {},
    element("span", { className: `swatch ${className}` }),
    element("span", { textContent: name }),
    element("b", { textContent: value }),
  );
}

/** Layers of rates, one upon the other. `layers` has [key, label] from the bottom up; `of` gives counts by key. */
export class Stack extends Chart {
  constructor(title, prefix, layers, of) {
    super(title);
    this.prefix = prefix;
    this.layers = layers;
    this.of = of;
  }

  per(stretch, name) {
    return (this.of(stretch)[name] ?? 0) / stretch.seconds;
  }

  present() {
    const found = this.layers.filter(([name]) => this.stretches.some((stretch) => this.of(stretch)[name]));
    return found.length ? found : this.layers.slice(0, 1);
  }

  sum(stretch) {
    return this.layers.reduce((total, [name]) => total + this.per(stretch, name), 0);
  }

  told(stretch) {
    return this.present().map(([name, label]) => `${label} ${rate(this.per(stretch, name))} a second`).join(", ");
  }

  content() {
    const top = ceiling(Math.max(1, ...this.stretches.map((stretch) => this.sum(stretch))));
    const y = (value) => this.bottom - (value / top) * (this.bottom - MARGIN.top);
    const grid = [0, top / 2, top].flatMap((value) => this.gridline(y(value), short(value)));
    const below = new Map(this.stretches.map((stretch) => [stretch, 0]));
    const areas = this.present().map(([name]) => {
      const under = new Map(below);
      for (const stretch of this.stretches) below.set(stretch, below.get(stretch) + this.per(stretch, name));
      const [upper, lower] = [below, under].map((sums) => (stretch) => y(sums.get(stretch)));
      const d = this.between(this.runs(() => true), upper, lower);
      return drawn("path", { d, class: `area ${this.prefix}-${name}` });
    });
    return [...grid, ...areas];
  }

  entries(read) {
    return this.present()
      .map(([name, label]) => key(label, `${this.prefix}-${name}`, read ? rate(this.per(read, name)) : "–"))
      .reverse();
  }
}

/** Within which time half and 99 of 100 requests of one surface are answered, on a scale of powers of ten. */
export class Latency extends Chart {
  constructor(title, surfaces) {
    super(title);
    this.surfaces = surfaces;
    this.surface = null;
    this.chooser = element("select", { "aria-label": "Of which surface" });
    this.chooser.addEventListener("change", () => {
      this.surface = this.chooser.value;
      this.draw();
    });
    this.heading.append(this.chooser);
  }

  draw() {
    const isSeen = (name) => name === "native" || this.stretches.some((each) => each.surfaces[name]);
    const seen = this.surfaces.filter(([name]) => isSeen(name));
    const offered = seen.map(([name]) => name).join();
    if (this.offered !== offered) {
      this.offered = offered;
      const options = seen.map(([name, label]) => element("option", { value: name, textContent: label }));
      this.chooser.replaceChildren(...options);
      this.chooser.value = seen.some(([name]) => name === this.surface) ? this.surface : "native";
    }
    this.surface = this.chooser.value;
    super.draw();
  }

  told(stretch) {
    const [number, half, most] = stretch.surfaces[this.surface] ?? [];
    return number ? `half within ${latency(half)}, 99 of 100 within ${latency(most)}` : "no requests";
  }

  content() {
    const has = (stretch) => stretch.surfaces[this.surface];
    const times = this.stretches.filter(has).flatMap((stretch) => has(stretch).slice(1));
    const low = Math.max(-6, Math.floor(Math.log10(Math.min(1e-4, ...times.filter(Boolean)))));
    const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(1e-3, ...times))));
    const share = (time) => (Math.log10(Math.max(time, 10 ** low)) - low) / (high - low);
    const y = (time) => this.bottom - share(time) * (this.bottom - MARGIN.top);
    const grid = [];
    for (let power = low; power <= high; power += 1) grid.push(...this.gridline(y(10 ** power), latency(10 ** power)));
    const [half, most] = [1, 2].map((which) => (stretch) => y(has(stretch)[which]));
    const runs = this.runs(has);
    const line = (edge) => runs.map((run) => `M${this.stair(run, edge).join("L")}`).join("");
    return [
      ...grid,
      drawn("path", { d: this.between(runs, most, half), class: "band" }),
      drawn("path", { d: line(half), class: "line p1" }),
      drawn("path", { d: line(most), class: "line p2" }),
    ];
  }

  entries(read) {
    const [number, half, most] = read?.surfaces[this.surface] ?? [];
    return [
      key("99 of 100 within", "p2", number ? latency(most) : "–"),
      key("half within", "p1", number ? latency(half) : "–"),
      element("li", { className: "faint", textContent: number ? `of ${count(number)} requests` : "no requests" }),
    ];
  }
}

/** The least round number that is not below a number. */
function ceiling(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * power >= number * 0.999) * power;
}

function short(number) {
  return number >= 1e6 ? `${number / 1e6} M` : number >= 1e4 ? `${number / 1e3} k` : count(number);
}
