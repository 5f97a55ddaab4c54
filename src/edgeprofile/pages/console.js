// The console: asks the service every two seconds how it fares, while anybody looks, and has all of it drawn.

import { Latency, Stack } from "./charts.js";
import { clock, count, day, duration, element, sign, write } from "./elements.js";
import { startLookup } from "./lookup.js";
import { called, Detail, List, troubled } from "./workspaces.js";

const INTERVAL_MS = 2000;
const ANSWER_MS_MAX = 5000;
const STRETCHES_MAX = 300;
const CERTIFICATE_SOON_S = 14 * 86400;
const SURFACES = [
  ["native", "native"],
  ["native_batch", "native, many"],
  ["insider", "Insider"],
  ["mparticle", "mParticle"],
  ["intilery", "Intilery"],
  ["batch", "Batch"],
  ["other", "other"],
];
const ANSWERS = [
  ["2xx", "2xx"],
  ["3xx", "3xx"],
  ["4xx", "4xx"],
  ["429", "429, over a limit"],
  ["other", "other"],
  ["5xx", "5xx"],
];

const at = (id) => document.getElementById(id);

// --- what is shown ---------------------------------------------------------------------------------------------------

const charts = [
  new Stack("Requests a second", "surface", SURFACES, (stretch) =>
    Object.fromEntries(Object.entries(stretch.surfaces).map(([name, [number]]) => [name, number])),
  ),
  new Stack("Answers a second", "status", ANSWERS, (stretch) => stretch.answers),
  new Latency("Latency", SURFACES),
];
at("charts").append(...charts.map((chart) => chart.root));
const list = new List(at("list"), at("filter"), choose);
const detail = new Detail(at("detail"));
startLookup(at("lookup"), at("outcome"), at("body"));

let stretches = [];
let selected = location.hash.slice(1) || null;
let answeredAt = null;

function choose(name) {
  selected = name;
  history.replaceState(null, "", `#${name}`);
  poll();
}

window.addEventListener("hashchange", () => {
  selected = location.hash.slice(1) || null;
  poll();
});

function show(state) {
  answeredAt = state.now;
  at("silence").hidden = true;
  at("shown").classList.remove("old");
  const last = stretches.at(-1)?.at ?? 0;
  if (state.now < last) stretches = []; // the clock was set back
  stretches = [...stretches, ...state.timeline.filter((stretch) => stretch.at > last)].slice(-STRETCHES_MAX);
  for (const chart of charts) chart.show(stretches, state.now);
  selected = state.workspace?.workspace ?? null;
  list.show(state.workspaces, selected);
  detail.show(state.workspace, state.now);
  at("workspaces").classList.toggle("alone", state.workspaces.length === 1);
  write(at("counted"), count(state.workspaces.length));
  offerNamespaces(Object.keys(state.workspace?.identifiers ?? {}));
  verdict(state);
  facts(state);
}

function offerNamespaces(names) {
  const offered = [...at("namespaces").children].map((option) => option.value);
  if (offered.join() === names.join()) return;
  at("namespaces").replaceChildren(...names.map((name) => element("option", { value: name })));
}

/** How it is with everything, in a few words; in the tab's title too. */
function verdict(state) {
  const found = troubled(state.workspaces);
  const damaged = state.total.records_damaged;
  document.title = `${found.length ? `(${found.length}) ` : ""}edgeprofile console`;
  if (damaged) return say("bad", `${count(damaged)} requests met a damaged record`);
  if (!state.workspaces.length) return say("warn", "There are no workspaces");
  if (!found.length) return say("good", "All is well");
  const [word, level] = called(found[0].health);
  if (found.length === 1) return say(level, `${found[0].workspace}: ${word}`);
  return say(level, `${count(found.length)} of ${count(state.workspaces.length)} workspaces need attention`);
}

function say(level, text) {
  const badge = at("verdict");
  if (badge.dataset.told === level + text) return;
  badge.dataset.told = level + text;
  badge.className = `badge ${level}`;
  badge.replaceChildren(sign(level), text);
}

const pair = (name, text) => element(name, { textContent: text });

function facts(state) {
  const shown = [
    ["Version", state.version],
    ["Workers", count(state.workers)],
    ["Up for", duration(state.now - state.started_at)],
    ["Over a limit", count(state.total.limited)],
  ];
  if (state.total.snapshots_refused) shown.push(["Snapshots refused", count(state.total.snapshots_refused), "bad"]);
  if (state.certificate_expires_at !== null) {
    const left = state.certificate_expires_at - state.now;
    const until = left > 0 ? `until ${day(state.certificate_expires_at)}` : "is over";
    shown.push(["Certificate", until, left < CERTIFICATE_SOON_S ? "bad" : ""]);
  }
  const fact = ([name, value, level]) =>
    element("div", { className: level ?? "" }, pair("dt", name), pair("dd", value));
  at("facts").replaceChildren(...shown.map(fact));
}

/** The last state stays, greyed. */
function showSilence() {
  const since = answeredAt === null ? "" : ` What is shown is of ${clock(answeredAt)}.`;
  write(at("silence"), `The admin listener does not answer: it is down, or all of the service.${since} Trying again.`);
  at("silence").hidden = false;
  at("shown").classList.add("old");
  say("bad", "No answer");
  document.title = "(!) edgeprofile console";
}

// --- asking ----------------------------------------------------------------------------------------------------------

let timer = null;
let asking = null;

async function poll() {
  clearTimeout(timer);
  asking?.abort();
  asking = document.hidden ? null : new AbortController();
  const mine = asking;
  if (!mine) return;
  const state = await ask(mine.signal);
  // Another was asked since, or nobody looks any more.
  if (asking !== mine) return;
  timer = setTimeout(poll, INTERVAL_MS);
  if (state) show(state);
  else showSilence();
}

/** The state, or null where there is none to be had. */
async function ask(signal) {
  const asked = new URLSearchParams({ after: String(stretches.at(-1)?.at ?? 0) });
  if (selected !== null) asked.set("workspace", selected);
  try {
    const until = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS_MAX)]);
    const answer = await fetch(`console/state?${asked}`, { signal: until, cache: "no-store", credentials: "omit" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

document.addEventListener("visibilitychange", poll);
poll();
