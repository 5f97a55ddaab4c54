// The workspaces: a list of all, those in need of attention first, and one in full.

import { bytes, count, duration, element, moment, sign, write } from "./elements.js";

/** What a health is called, how grave it is, and what it means; the gravest first. */
const HEALTHS = {
  damaged: ["Damaged", "bad", "What is published cannot be read."],
  stale: ["Stale", "bad", "What is served is older than it should ever be."],
  empty: ["Nothing published", "warn", "Nothing is published yet: lookups are answered 503. Run edgeprofile load."],
  failing: ["Refresh failed", "warn", "The last refresh failed. What was published before is served on."],
  rolled_back: ["Rolled back", "warn", "Somebody chose an older snapshot. It stays until edgeprofile load is run."],
  unwatched: ["Nobody watches", "none", "No watcher runs: it is as fresh as loads by hand or from cron keep it."],
  ok: ["Fresh", "good", "Refreshes succeed, and what is served is as fresh as it should be."],
};
const SUCCESSES = { published: "published", delta: "delta", unchanged: "unchanged" };
const FILTER_FROM = 9;

/** The workspaces that need attention, the gravest first. */
export const troubled = (workspaces) =>
  sorted(workspaces).filter((each) => ["bad", "warn"].includes(HEALTHS[each.health][1]));
export const called = (health) => HEALTHS[health].slice(0, 2);

function sorted(workspaces) {
  const place = (each) => Object.keys(HEALTHS).indexOf(each.health);
  return workspaces.toSorted((a, b) => place(a) - place(b) || (a.workspace < b.workspace ? -1 : 1));
}

const named = (outcome) => outcome.replaceAll("_", " ");
/** Of an outcome: what it is drawn in. */
const kind = (outcome) => SUCCESSES[outcome] ?? (outcome === "rolled_back" ? "back" : "failed");

// --- the list --------------------------------------------------------------------------------------------------------

/** The list; `choose` is called with a name. A row's place changes only when a health does. */
export class List {
  constructor(root, filter, choose) {
    this.root = root;
    this.filter = filter;
    this.choose = choose;
    this.rows = new Map();
    this.selected = null;
    this.isNew = true;
    root.addEventListener("click", (event) => this.pick(event.target.closest("li")));
    root.addEventListener("keydown", (event) => this.press(event));
    filter.addEventListener("input", () => this.sift());
  }

  show(workspaces, selected) {
    this.selected = selected;
    this.filter.hidden = workspaces.length < FILTER_FROM;
    for (const each of workspaces) {
      if (!this.rows.has(each.workspace)) this.rows.set(each.workspace, new Row(each.workspace));
      this.rows.get(each.workspace).show(each, each.workspace === selected);
    }
    const order = sorted(workspaces).map((each) => this.rows.get(each.workspace).root);
    if (order.length !== this.root.childElementCount || order.some((row, at) => row !== this.root.children[at])) {
      const focused = document.activeElement;
      this.root.replaceChildren(...order);
      if (order.includes(focused)) focused.focus();
    }
    this.sift();
    if (this.isNew) this.root.scrollTop = (this.rows.get(selected)?.root.offsetTop ?? 0) - this.root.clientHeight / 2;
    this.isNew = false;
  }

  sift() {
    const text = this.filter.value.trim().toLowerCase();
    for (const [name, row] of this.rows) row.root.hidden = !name.includes(text);
    // The one that Tab leads to.
    const shown = [...this.root.children].filter((row) => !row.hidden);
    const first = shown.find((row) => row.dataset.name === this.selected) ?? shown[0];
    for (const row of this.root.children) row.tabIndex = row === first ? 0 : -1;
  }

  press(event) {
    const shown = [...this.root.children].filter((row) => !row.hidden);
    const at = shown.indexOf(event.target.closest("li"));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1, Enter: at, " ": at }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const row = shown[Math.min(shown.length - 1, Math.max(0, to))];
    row.focus();
    this.pick(row);
  }

  pick(row) {
    if (row) this.choose(row.dataset.name);
  }
}

class Row {
  constructor(name) {
    this.sign = element("span");
    this.strip = element("span", { className: "ticks", "aria-hidden": "true" });
    this.health = element("span", { className: "unseen" });
    this.age = element("span", { className: "age" });
    this.profiles = element("span", { className: "faint" });
    this.meter = new Meter();
    const title = element("span", { className: "name", textContent: name, title: name });
    const shown = [this.sign, title, this.health, this.age, this.profiles, this.strip, this.meter.root];
    this.root = element("li", { role: "option" }, ...shown);
    this.root.dataset.name = name;
  }

  show(each, isSelected) {
    const [label, level] = HEALTHS[each.health];
    this.root.setAttribute("aria-selected", String(isSelected));
    if (this.level !== level) this.sign.replaceChildren(sign(level));
    this.level = level;
    write(this.health, `, ${label}, `);
    write(this.age, each.staleness == null ? "" : duration(each.staleness));
    write(this.profiles, each.profiles == null ? label : `${count(each.profiles)} profiles`);
    this.meter.show(each);
    const last = each.last.join();
    if (this.last !== last) {
      this.strip.replaceChildren(...each.last.map((outcome) => element("i", { className: kind(outcome) })));
    }
    this.last = last;
  }
}

/** How old what is served is, against how old it may get, where anybody is to keep it fresh. */
class Meter {
  constructor() {
    this.fill = element("i");
    this.mark = element("b");
    this.root = element("span", { className: "meter" }, this.fill, this.mark);
  }

  show(each) {
    this.root.hidden = each.staleness == null;
    if (this.root.hidden) return;
    this.span = Math.max(each.staleness, each.staleness_max) * 1.05;
    this.fill.style.width = `${(each.staleness / this.span) * 100}%`;
    this.mark.style.left = `${(each.staleness_max / this.span) * 100}%`;
    this.mark.hidden = each.health === "unwatched";
    this.root.className = `meter ${{ stale: "bad", unwatched: "none" }[each.health] ?? "good"}`;
  }
}

// --- one in full -----------------------------------------------------------------------------------------------------

/** A workspace in full. What stays is drawn once, so that what has the focus keeps it. */
export class Detail {
  constructor(root) {
    this.root = root;
    this.title = element("h2");
    this.badge = element("span", { className: "badge" });
    this.meaning = element("p");
    this.problems = element("ul", { className: "problems" });
    this.freshness = new Freshness();
    this.figures = element("dl", { className: "figures" });
    this.rejects = new Rejects();
    this.history = new History();
    this.snapshot = element("p", { className: "snapshot faint" });
    root.append(
      element("div", { className: "heading" }, this.title, this.badge),
      this.meaning,
      this.problems,
      this.freshness.root,
      this.figures,
      this.history.root,
      this.rejects.root,
      this.snapshot,
    );
  }

  show(each, now) {
    this.root.hidden = !each;
    if (!each) return;
    const [label, level, meaning] = HEALTHS[each.health];
    write(this.title, each.workspace);
    if (this.badge.dataset.health !== each.health) this.badge.replaceChildren(sign(level), label);
    this.badge.dataset.health = each.health;
    this.badge.className = `badge ${level}`;
    write(this.meaning, meaning);
    const failure = each.health !== "ok" ? failureOf(each) : "";
    const problems = [...each.problems, failure].filter(Boolean);
    if (this.told !== problems.join("\n")) {
      this.problems.replaceChildren(...problems.map((text) => element("li", { textContent: text })));
      this.told = problems.join("\n");
    }
    this.freshness.show(each, now);
    figures(this.figures, each);
    this.history.show(each);
    this.rejects.show(each);
    this.snapshot.hidden = !each.snapshot;
    write(this.snapshot, each.snapshot ? told(each, now) : "");
  }
}

function failureOf(each) {
  const last = each.last_refresh;
  if (!last || kind(last.outcome) !== "failed") return "";
  return `${moment(last.finished_at)}: ${named(last.outcome)}${last.message ? `: ${last.message}` : ""}`;
}

function told(each, now) {
  const built = `built ${duration(each.age)} ago (${moment(now - each.age)})`;
  const forced = each.forced ? ", forced past the guards" : "";
  return `Snapshot ${each.snapshot}, ${built}, ${bytes(each.file_bytes)}${forced}`;
}

/** How old what is served is, and when the next refresh is due. */
class Freshness {
  constructor() {
    this.text = element("p");
    this.meter = new Meter();
    this.meter.root.setAttribute("role", "meter");
    this.meter.root.setAttribute("aria-label", "Staleness");
    this.next = element("p", { className: "faint" });
    this.root = element("div", { className: "freshness" }, this.text, this.meter.root, this.next);
  }

  show(each, now) {
    this.meter.show(each);
    this.text.hidden = this.meter.root.hidden;
    if (!this.text.hidden) {
      const most = each.health === "unwatched" ? "" : ` of at most ${duration(each.staleness_max)}`;
      write(this.text, `${duration(each.staleness)}${most} since the warehouse was seen to hold what is served`);
      const figures = { valuemin: "0", valuemax: this.meter.span.toFixed(1), valuenow: each.staleness.toFixed(1) };
      for (const [name, value] of Object.entries(figures)) this.meter.root.setAttribute(`aria-${name}`, value);
      this.meter.root.setAttribute("aria-valuetext", this.text.textContent);
    }
    this.next.classList.toggle("running", each.loading_since !== null);
    write(this.next, this.nextOf(each, now));
  }

  nextOf(each, now) {
    if (each.loading_since !== null) return `Being loaded for ${duration(Math.max(0, now - each.loading_since))}`;
    if (each.rolled_back) return "No refresh until somebody runs edgeprofile load";
    if (!each.watcher?.alive) return "No refresh is planned";
    if (each.next_refresh_at === null) return "The first refresh is due";
    const left = each.next_refresh_at - now;
    return left > 0 ? `Next refresh within ${duration(left)}` : "The next refresh is due";
  }
}

function figures(root, each) {
  const shown = [
    ["Profiles", each.profiles],
    ["Changed since, live", each.live_profiles],
    ["Events", each.events],
    ["Evicted by this snapshot", each.evicted],
    ["Rows left out", each.rejected && sum(each.rejected) + sum(each.events_rejected)],
    ["Requests over their limit", each.limited],
  ];
  if (root.childElementCount !== shown.length) {
    const pair = ([name]) => element("div", {}, element("dt", { textContent: name }), element("dd"));
    root.replaceChildren(...shown.map(pair));
  }
  shown.forEach(([, number], at) => write(root.children[at].lastChild, number == null ? "–" : count(number)));
}

const sum = (counts) => Object.values(counts).reduce((total, number) => total + number, 0);

/** The rows that are left out, by reason. */
class Rejects {
  constructor() {
    this.list = element("ul", { className: "bars" });
    this.root = element("section", {}, element("h3", { textContent: "Rows left out, by reason" }), this.list);
  }

  show(each) {
    const rows = [["profiles", each.rejected], ["events", each.events_rejected]]
      .flatMap(([model, counts]) => Object.entries(counts ?? {}).map(([reason, number]) => [model, reason, number]))
      .sort((a, b) => b[2] - a[2]);
    this.root.hidden = rows.length === 0;
    const most = Math.max(...rows.map(([, , number]) => number));
    this.list.replaceChildren(
      ...rows.map(([model, reason, number]) => {
        const bar = element("i");
        bar.style.width = `${(number / most) * 100}%`;
        const label = element("span", { textContent: named(reason) + (model === "events" ? " (events)" : "") });
        return element("li", {}, label, element("b", { textContent: count(number) }), bar);
      }),
    );
  }
}

/** The last refreshes, a bar each: its height how long it took, its colour what came of it. */
class History {
  constructor() {
    const label = "The last refreshes, the newest last; arrow keys go through them";
    this.bars = element("div", { className: "history", role: "group", "aria-label": label });
    this.about = element("p", { className: "about" });
    this.legend = element("ul", { className: "legend", "aria-label": "All refreshes there ever were" });
    const title = element("h3", { textContent: "Last refreshes" });
    this.root = element("section", {}, title, this.bars, this.about, this.legend);
    this.bars.addEventListener("pointerover", (event) => this.tell(event.target.closest("button")));
    this.bars.addEventListener("pointerleave", () => this.tell(this.focused()));
    this.bars.addEventListener("focusin", (event) => this.tell(event.target));
    this.bars.addEventListener("keydown", (event) => this.press(event));
  }

  focused() {
    return this.bars.contains(document.activeElement) ? document.activeElement : null;
  }

  show(each) {
    const { history } = each;
    this.root.hidden = history.length === 0;
    const version = `${each.workspace} ${history.at(-1)?.finished_at}`;
    if (this.version === version) return;
    this.version = version;
    this.legend.replaceChildren(...Object.entries(each.refreshes).map(total));
    const longest = Math.max(...history.map((outcome) => outcome.seconds), 1e-9);
    const wasAt = [...this.bars.children].indexOf(this.focused());
    this.bars.replaceChildren(
      ...history.map((outcome, at) => {
        const bar = element("button", { type: "button", className: kind(outcome.outcome) });
        bar.setAttribute("aria-label", line(outcome));
        // By the root, so that one that took long does not make all others look alike.
        bar.style.setProperty("--height", Math.sqrt(outcome.seconds / longest).toFixed(3));
        bar.tabIndex = at === history.length - 1 ? 0 : -1;
        return bar;
      }),
    );
    if (wasAt >= 0) this.bars.children[Math.min(wasAt, history.length - 1)].focus();
    this.tell(this.focused());
  }

  press(event) {
    const bars = [...this.bars.children];
    const at = bars.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: bars.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    bars[Math.min(bars.length - 1, Math.max(0, to))].focus();
  }

  tell(bar) {
    const told = bar ?? this.bars.lastChild;
    for (const each of this.bars.children) each.classList.toggle("told", each === bar);
    write(this.about, told?.getAttribute("aria-label") ?? "");
    this.about.className = `about ${told?.className.split(" ")[0] ?? ""}`;
  }
}

/** Of an outcome: how many of it there ever were. */
function total([outcome, number]) {
  const swatch = element("span", { className: `swatch ${kind(outcome)}` });
  const name = element("span", { textContent: named(outcome) });
  return element("li", {}, swatch, name, element("b", { textContent: count(number) }));
}

function line(outcome) {
  const took = outcome.seconds ? ` in ${duration(outcome.seconds)}` : "";
  const parts = [`${moment(outcome.finished_at)}: ${named(outcome.outcome)}${took}`];
  if (outcome.outcome in SUCCESSES) {
    parts.push(`${count(outcome.profiles)} profiles`);
    for (const name of ["events", "rejected", "evicted", "changed", "deleted"]) {
      if (outcome[name]) parts.push(`${count(outcome[name])} ${name === "rejected" ? "rows left out" : name}`);
    }
  }
  return parts.join(", ") + (outcome.message ? `: ${outcome.message}` : "");
}
