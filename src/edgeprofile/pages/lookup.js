// A lookup by hand. The key is read from the form when it is sent, and is nowhere else.

import { bytes, element, latency, write } from "./elements.js";

// So much is coloured; what is longer is shown as it is.
const COLOURED_CHARS_MAX = 100_000;
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s"{}[\]:,]+/g;

export function startLookup(form, outcome, body) {
  const { key, namespace, value, fields, events } = form.elements;
  events.addEventListener("change", () => {
    fields.disabled = events.value !== "";
  });
  form.addEventListener("reset", () => {
    write(outcome, "");
    body.hidden = true;
    body.replaceChildren();
    fields.disabled = false;
    key.focus();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = { value: value.value };
    if (namespace.value) wanted.namespace = namespace.value;
    if (events.value) wanted.events = true;
    else if (fields.value) wanted.fields = fields.value;
    outcome.className = "outcome faint";
    write(outcome, "Asking…");
    try {
      const answer = await fetch("console/lookup", {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${key.value.trim()}` },
        body: JSON.stringify(wanted),
        credentials: "omit",
        cache: "no-store",
      });
      show(outcome, body, answer, await answer.text());
    } catch {
      outcome.className = "outcome bad";
      write(outcome, "The admin listener does not answer.");
      body.hidden = true;
    }
  });
}

function show(outcome, body, answer, text) {
  const took = /dur=([0-9.]+)/.exec(answer.headers.get("server-timing") ?? "");
  const facts = [
    `${answer.status}`,
    bytes(new TextEncoder().encode(text).length),
    took && latency(took[1] / 1e3),
    answer.headers.get("etag") && `ETag ${answer.headers.get("etag")}`,
    answer.headers.get("retry-after") && `again in ${answer.headers.get("retry-after")} s`,
  ];
  outcome.className = `outcome ${answer.ok ? "good" : "bad"}`;
  write(outcome, facts.filter(Boolean).join(" · "));
  body.replaceChildren(...(text.length > COLOURED_CHARS_MAX ? [text] : coloured(text)));
  body.hidden = false;
  body.scrollTop = 0;
}

/** JSON with line ends, and its tokens by what they are: not parsed, for that would round what has more digits. */
function* coloured(text) {
  const tokens = text.match(TOKEN) ?? [];
  let depth = 0;
  const lineEnd = () => `\n${"  ".repeat(depth)}`;
  for (let at = 0; at < tokens.length; at += 1) {
    const token = tokens[at];
    const next = tokens[at + 1];
    if (token === "{" || token === "[") {
      const isEmpty = next === "}" || next === "]";
      depth += 1;
      yield isEmpty ? token : token + lineEnd();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      const isEmpty = tokens[at - 1] === "{" || tokens[at - 1] === "[";
      yield isEmpty ? token : lineEnd() + token;
    } else if (token === ",") {
      yield token + lineEnd();
    } else if (token === ":") {
      yield ": ";
    } else {
      const kind = token[0] !== '"' ? "figure" : next === ":" ? "field" : "text";
      yield element("span", { className: kind, textContent: token });
    }
  }
}
