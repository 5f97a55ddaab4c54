// Elements made without a word of HTML, and figures as people read them.

const SVG = "http://www.w3.org/2000/svg";

/** An element with these properties and children; names with a hyphen, `role` and `for` are attributes. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** An element of a drawing with these attributes. */
export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Sets a text only where it changes, so that a selection in it stays. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const DISC = "M0 8a8 8 0 0 1 16 0a8 8 0 0 1-16 0z";
/** By level, the outline and what is in it. */
const SIGNS = {
  good: [DISC, "M4 8.5l2.7 2.7 5-5.9"],
  none: [DISC, "M4 8h8"],
  warn: ["M8 .8L15.6 14.6H.4z", "M8 5.5v4M8 12.2v.3"],
  bad: ["M1 1h14v14H1z", "M5 5l6 6M11 5l-6 6"],
};

/** The sign of a level, which differs from the others in shape as well as in colour. */
export function sign(level) {
  const [outline, mark] = SIGNS[level].map((d, at) => drawn("path", { d, class: at ? "mark" : "outline" }));
  return drawn("svg", { viewBox: "0 0 16 16", class: `sign ${level}`, "aria-hidden": "true" }, outline, mark);
}

// --- figures ---------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en");
const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const clockTime = new Intl.DateTimeFormat(undefined, time);
const clockDay = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

export const count = (number) => whole.format(number);

/** Three digits that count: 0.5, 12.3, 1,234. */
export function rate(number) {
  if (number >= 100 || number === 0) return whole.format(Math.round(number));
  return String(Number(number.toPrecision(number < 1 ? 1 : 3)));
}

/** How long requests take: 85 µs, 1.2 ms. */
export function latency(seconds) {
  const [number, unit] = seconds < 1e-3 ? [seconds * 1e6, "µs"] : seconds < 1 ? [seconds * 1e3, "ms"] : [seconds, "s"];
  return `${Number(number.toPrecision(number < 10 ? 2 : 3))} ${unit}`;
}

/** How long all else takes: 0.8 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`;
  const steps = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.round(seconds);
  const at = steps.findIndex(([, length]) => left >= length);
  return steps
    .slice(at, at + 2)
    .map(([unit, length]) => {
      const number = Math.floor(left / length);
      left -= number * length;
      return number ? `${number} ${unit}` : "";
    })
    .filter(Boolean)
    .join(" ");
}

export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (number >= 1000 && at < units.length - 1) {
    number /= 1000;
    at += 1;
  }
  return `${at ? Number(number.toPrecision(3)) : count(number)} ${units[at]}`;
}

/** A moment, in Unix seconds, on the reader's clock. */
export const clock = (at) => clockTime.format(at * 1000);
export const day = (at) => clockDay.format(at * 1000);
/** With its day, where that is another than today. */
export const moment = (at) => (day(at) === day(Date.now() / 1000) ? clock(at) : `${day(at)}, ${clock(at)}`);
