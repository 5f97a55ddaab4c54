// Draws openapi.json. All that it says becomes text, never markup, and requests go to this server alone.
"use strict";

const METHODS = ["get", "head", "post", "put", "patch", "delete"];
const DEPTH_MAX = 4;
let description = {};

// --- elements -------------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// What stands in backticks is code.
function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

function paragraphs(text) {
  const points = text.split("\n").filter((line) => line.startsWith("- "));
  if (points.length) return make("ul", {}, ...points.map((point) => make("li", {}, ...prose(point.slice(2)))));
  return make("p", {}, ...prose(text));
}

function pathOf(path) {
  return make("code", {}, ...path.split(/(\{[^}]+\})/).map((part) =>
    part.startsWith("{") ? make("span", { class: "variable" }, part) : part));
}

// --- schemas --------------------------------------------------------------------------------------------------------

function resolved(part) {
  if (!part || !part.$ref) return part || {};
  const found = part.$ref.slice(2).split("/").reduce((at, step) => at[step], description);
  return { ...resolved(found), ...Object.fromEntries(Object.entries(part).filter(([key]) => key !== "$ref")) };
}

// A schema or null, without the null.
function bare(schema) {
  const found = resolved(schema);
  const others = (found.anyOf || []).filter((each) => each.type !== "null");
  return found.anyOf && others.length === 1 && others.length < found.anyOf.length
    ? { ...resolved(others[0]), ...found, anyOf: undefined, orNull: true } : found;
}

function range(low, high, unit) {
  if (low === undefined && high === undefined) return "";
  if (high === undefined) return low > 0 ? `, ${low} or more${unit}` : "";
  return low === undefined ? `, up to ${high}${unit}` : `, ${low} to ${high}${unit}`;
}

function typeOf(schema) {
  const found = bare(schema);
  const types = [found.type].flat().filter((type) => type && type !== "null");
  let text = types.join(" or ") || "anything";
  if (found.const !== undefined) text = JSON.stringify(found.const);
  else if (found.enum) text = `one of ${found.enum.join(", ")}`;
  else if (found.anyOf || found.oneOf) {
    const each = (found.anyOf || found.oneOf).map((one) => typeOf({ ...(types.length ? { type: found.type } : {}), ...one }));
    text = [...new Set(each)].join(", or ");
  } else if (types[0] === "array") text = `list of ${typeOf(found.items)}${range(found.minItems, found.maxItems, " of them")}`;
  else if (found.format && found.format !== "int64") text = found.format;
  else if (types[0] === "string") text = `text${range(found.minLength, found.maxLength, " characters")}`;
  else if (found.format === "int64") text = "integer of 64 bits";
  else text += range(found.minimum, found.maximum, "");
  if (found.default !== undefined && found.default !== null) text += `, default ${found.default}`;
  return text + (found.orNull || (Array.isArray(found.type) && found.type.includes("null")) ? ", or null" : "");
}

// The rows of what is in an object or in a list of such.
function rowsOf(schema, depth = 0, known = []) {
  const found = bare(schema);
  const inner = found.type === "array" ? bare(found.items) : found;
  const rows = [];
  const shapes = [inner, ...(inner.anyOf || []), ...(inner.oneOf || [])].map(bare).filter((shape) => shape.properties);
  const properties = Object.assign({}, ...shapes.map((shape) => shape.properties));
  for (const [name, value] of Object.entries(properties)) {
    const isRequired = (inner.required || []).includes(name);
    rows.push(rowOf(name, value, isRequired, depth));
    if (depth < DEPTH_MAX && !known.includes(value.$ref)) rows.push(...rowsOf(value, depth + 1, [...known, value.$ref].filter(Boolean)));
  }
  for (const [pattern, value] of Object.entries(inner.patternProperties || {})) rows.push(rowOf(pattern.replace(/^\^|\$$/g, ""), value, false, depth));
  return rows;
}

function rowOf(name, schema, isRequired, depth = 0, about = undefined) {
  const told = about || bare(schema).description || "";
  return make("tr", {},
    make("td", { class: `deep depth-${depth}` }, make("span", { class: "name" }, name),
      isRequired ? make("span", { class: "required" }, " required") : null,
      make("span", { class: "type" }, typeOf(schema))),
    make("td", {}, ...prose(told)));
}

function tableOf(rows) {
  return make("table", {}, make("tbody", {}, ...rows));
}

// --- examples -------------------------------------------------------------------------------------------------------

function example(part, name) {
  const found = resolved(part).examples || {};
  return (found[name] || Object.values(found)[0] || {}).value;
}

function joined(value) {
  return Array.isArray(value) ? value.map(encodeURIComponent).join(",") : encodeURIComponent(value);
}

// A request of these values: method, target, headers and body.
function requestOf(operation, values, body, key) {
  let target = operation.base + operation.path.replace(/\{([^}]+)\}/g, (_, name) => encodeURIComponent(values[name] ?? ""));
  const query = [];
  const headers = {};
  for (const parameter of operation.parameters) {
    const value = values[parameter.name];
    if (value === undefined || value === "") continue;
    if (parameter.in === "header") headers[parameter.name] = value;
    if (parameter.in !== "query") continue;
    const each = Array.isArray(value) && parameter.explode !== false ? value : [value];
    query.push(...each.map((one) => `${parameter.name}=${joined(one)}`));
  }
  for (const scheme of Object.keys(operation.security[0] || {})) {
    const kind = description.components.securitySchemes[scheme];
    if (kind.type === "apiKey") headers[kind.name] = key;
    else if (kind.scheme === "bearer") headers.Authorization = `Bearer ${key}`;
  }
  if (query.length) target += `?${query.join("&")}`;
  if (body !== undefined) headers["Content-Type"] = operation.media;
  return { method: operation.methods[0].toUpperCase(), target, headers, body };
}

function bodyText(operation, value) {
  if (value === undefined) return undefined;
  if (operation.media !== "application/x-www-form-urlencoded") return JSON.stringify(value);
  return Object.entries(value).map(([name, text]) => `${name}=${text}`).join("&");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function curl(request) {
  const lines = [`curl ${request.method === "GET" ? "" : `-X ${request.method} `}${quoted(location.origin + request.target)}`];
  for (const [name, value] of Object.entries(request.headers)) lines.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (request.body !== undefined) lines.push(`-d ${quoted(request.body)}`);
  return lines.join(" \\\n  ");
}

function shown(text) {
  const block = make("div", { class: "example" }, make("pre", { tabindex: "0" }, make("code", {}, text)));
  if (navigator.clipboard) {
    const copy = make("button", { class: "copy", type: "button", onclick: async () => {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } }, "Copy");
    block.append(copy);
  }
  return block;
}

function examplesOf(operation) {
  const names = new Set();
  for (const part of [...operation.parameters, operation.content, ...Object.values(operation.answers)]) {
    const holder = resolved(part);
    const media = holder.content ? Object.values(holder.content)[0] : holder;
    if (holder.content && Object.keys(operation.answers).find((status) => operation.answers[status] === part && status >= "300")) continue;
    Object.keys(media.examples || {}).forEach((name) => names.add(name));
  }
  const blocks = [];
  for (const name of names.size ? names : [""]) {
    const values = Object.fromEntries(operation.parameters.map((each) => [each.name, (each.examples || {})[name]?.value]));
    const body = operation.content ? bodyText(operation, example(operation.content, name)) : undefined;
    blocks.push(make("h4", {}, names.size > 1 ? `Example: ${name}` : "Example"), shown(curl(requestOf(operation, values, body, "sk_live_…"))));
    for (const answer of Object.entries(operation.answers).filter(([status]) => status < "300").map(([, each]) => resolved(each))) {
      const media = Object.values(answer.content || {})[0];
      const value = media && (media.examples || {})[name]?.value;
      if (value !== undefined) blocks.push(shown(JSON.stringify(value, null, 2)));
    }
  }
  return blocks;
}

// --- trying ---------------------------------------------------------------------------------------------------------

function tried(operation) {
  const fields = operation.parameters.map((parameter) => {
    const value = example(parameter);
    const input = make("input", { "data-name": parameter.name, autocomplete: "off", spellcheck: "false" });
    input.value = [value ?? ""].flat().join(",");
    return make("label", {}, make("span", { class: "name" }, parameter.name), input);
  });
  const body = operation.content ? make("textarea", { "aria-label": "Body", spellcheck: "false" }) : null;
  if (body) {
    const value = example(operation.content);
    body.value = operation.media.endsWith("json") ? JSON.stringify(value, null, 2) : bodyText(operation, value);
  }
  const told = make("div", { role: "status" });
  const send = make("button", { class: "primary", type: "button", onclick: () => sent(operation, fields, body, told) }, "Send");
  const changes = ["DELETE"].includes(operation.methods[0].toUpperCase()) || operation.tags[0] === "Batch" && operation.content;
  const note = changes ? make("span", { class: "warn" }, "This changes what is served.") : null;
  return make("div", { class: "try" }, make("h4", {}, "Try it"), ...fields, body, make("div", { class: "row" }, send, note), told);
}

async function sent(operation, fields, body, told) {
  const values = {};
  for (const input of fields.map((field) => field.querySelector("input"))) {
    const parameter = operation.parameters.find((each) => each.name === input.dataset.name);
    const isList = bare(parameter.schema).type === "array" && input.value !== "";
    values[parameter.name] = isList ? input.value.split(",") : input.value;
  }
  const request = requestOf(operation, values, body ? body.value : undefined, document.getElementById("key").value);
  told.replaceChildren("Sent…");
  const start = performance.now();
  try {
    const options = { method: request.method, headers: request.headers, body: request.body, cache: "no-store", credentials: "omit" };
    const answer = await fetch(new URL(`.${request.target}`, location.href), options);
    const text = await answer.text();
    const took = Math.round(performance.now() - start);
    told.replaceChildren(
      make("p", { class: answer.ok ? "good" : "bad" }, `${answer.status} ${answer.statusText}, after ${took} ms`),
      shown([...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n")), text ? shown(pretty(text)) : "");
  } catch (error) {
    told.replaceChildren(make("p", { class: "bad" }, `It could not be sent: ${error.message}`));
  }
}

function pretty(text) {
  try {
    // Numbers beyond what this browser can hold stay as they are sent.
    return /\d{16}/.test(text) ? text : JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// --- the page -------------------------------------------------------------------------------------------------------

// The operations, one for all methods that answer alike.
function operations() {
  const found = [];
  for (const [path, at] of Object.entries(description.paths)) {
    const server = (at.servers || [])[0];
    const filled = server ? server.url.replace(/\{([^}]+)\}/g, (_, name) => server.variables[name].default) : "";
    for (const method of METHODS.filter((each) => at[each])) {
      const operation = at[method];
      if (method === "head" && at.get) {
        found.find((each) => each.id === at.get.operationId).methods.push("head");
        continue;
      }
      const content = operation.requestBody ? Object.entries(operation.requestBody.content)[0] : [];
      found.push({
        id: operation.operationId, path, base: filled, shown: (server ? server.url : "") + path, methods: [method],
        tags: operation.tags, summary: operation.summary, about: operation.description || "",
        parameters: operation.parameters || [], media: content[0], content: content[1], bodyAbout: (operation.requestBody || {}).description,
        answers: operation.responses, security: operation.security || [],
      });
    }
  }
  return found;
}

function answersOf(operation) {
  return Object.entries(operation.answers).map(([status, part]) => {
    const answer = resolved(part);
    const media = Object.entries(answer.content || {});
    const kind = status < "300" ? "good" : status < "400" ? "faint" : "bad";
    const points = answer.description.split("\n");
    const brief = points.length > 1 ? points.map((point) => point.split(":")[0].replace(/^- /, "")).join(", ") : points[0];
    const rows = media.length ? rowsOf(media[0][1].schema) : [];
    const headers = Object.keys(answer.headers || {}).join(", ");
    return make("details", { class: "answer" },
      make("summary", {}, make("span", { class: `status ${kind}` }, status), make("span", { class: "one" }, ...prose(brief))),
      make("div", {}, points.length > 1 ? paragraphs(answer.description) : null,
        media.length ? make("p", { class: "faint" }, media.map(([name]) => name).join(", ")) : null,
        headers ? make("p", { class: "faint" }, `Headers: ${headers}`) : null,
        rows.length && status < "300" ? tableOf(rows) : null,
        media.length && status >= "400" ? shown(JSON.stringify(example(media[0][1]), null, 2)) : null));
  });
}

function drawn(operation) {
  const schemes = operation.security.flatMap((each) => Object.keys(each));
  const badges = operation.methods.map((method) => make("span", { class: `method ${method}` }, method.toUpperCase()));
  const inside = () => make("div", { class: "inside" },
    operation.about ? paragraphs(operation.about) : null,
    make("div", {},
      operation.parameters.length ? make("h4", {}, "Parameters") : null,
      operation.parameters.length ? tableOf(operation.parameters.map((each) =>
        rowOf(each.name, each.schema, each.required, 0, `${each.in === "header" ? "Header: " : ""}${each.description}`))) : null,
      operation.content ? make("h4", {}, "Body") : null,
      operation.content ? make("p", { class: "faint" }, ...prose([typeOf(operation.content.schema), operation.bodyAbout].filter(Boolean).join("; "))) : null,
      operation.content ? tableOf(rowsOf(operation.content.schema)) : null,
      make("h4", {}, "Answers"), ...answersOf(operation),
      make("h4", {}, "Key"),
      make("p", {}, ...prose(schemes.length ? schemes.map((each) => description.components.securitySchemes[each].description).join(", or ") : "none is needed"))),
    make("div", {}, ...examplesOf(operation), tried(operation)));
  const element = make("details", { class: "operation", id: operation.id, "data-surface": operation.tags[0] },
    make("summary", {}, make("span", { class: "methods" }, ...badges), pathOf(operation.shown), make("span", { class: "faint" }, operation.summary)));
  // What is inside is drawn when it is first looked at.
  element.addEventListener("toggle", () => { if (element.open && element.childElementCount === 1) element.append(inside()); });
  element.words = [operation.shown, operation.summary, operation.about, ...operation.methods].join(" ").toLowerCase();
  return element;
}

function errors() {
  const codes = description.components.schemas.Problem.properties.code.oneOf;
  const rows = codes.map((code) => make("tr", { id: code.const },
    make("td", {}, make("span", { class: "name" }, code.const), make("span", { class: "type" }, code.title)), make("td", {}, ...prose(code.description))));
  return make("section", { id: "errors" }, make("h2", {}, "Errors"),
    make("p", {}, ...prose("Problems of RFC 9457, as `application/problem+json`. The other surfaces have their own shapes, shown with each operation.")),
    make("table", { class: "errors" }, make("tbody", {}, ...rows)));
}

function draw() {
  const all = operations();
  document.getElementById("version").textContent = description.info.version;
  const sections = [make("section", { id: "intro" }, make("p", {}, ...prose(description.info.description)))];
  const index = [];
  for (const tag of description.tags) {
    const own = all.filter((operation) => operation.tags[0] === tag.name);
    sections.push(make("section", { "data-surface": tag.name }, make("h2", {}, tag.name), make("p", {}, ...prose(tag.description)), ...own.map(drawn)));
    index.push(make("h2", { "data-surface": tag.name }, tag.name),
      ...own.map((operation) => make("a", { href: `#${operation.id}`, "data-surface": tag.name }, operation.summary)));
  }
  const nothing = make("p", { class: "nothing", hidden: "" }, "Nothing is found.");
  document.getElementById("operations").replaceChildren(...sections, nothing, errors());
  document.getElementById("index").replaceChildren(...index, make("h2", {}, "More"), make("a", { href: "#errors" }, "Errors"));
  filters(["All", ...description.tags.map((tag) => tag.name)]);
  document.getElementById("search").addEventListener("input", filter);
  addEventListener("hashchange", follow);
  follow();
}

function filters(names) {
  const holder = document.getElementById("filters");
  holder.replaceChildren(...names.map((name) => make("button", { type: "button", "aria-pressed": String(name === "All"), onclick: (event) => {
    for (const button of holder.children) button.setAttribute("aria-pressed", String(button === event.target));
    filter();
  } }, name)));
}

function filter() {
  const surface = document.querySelector('#filters [aria-pressed="true"]').textContent;
  const words = document.getElementById("search").value.toLowerCase().split(" ").filter(Boolean);
  let found = 0;
  for (const operation of document.querySelectorAll(".operation")) {
    const is = (surface === "All" || operation.dataset.surface === surface) && words.every((word) => operation.words.includes(word));
    operation.hidden = !is;
    document.querySelector(`nav a[href="#${operation.id}"]`).hidden = !is;
    found += is;
  }
  for (const part of document.querySelectorAll("section[data-surface], nav h2[data-surface]"))
    part.hidden = !document.querySelector(`.operation[data-surface="${part.dataset.surface}"]:not([hidden])`);
  document.getElementById("intro").hidden = document.getElementById("errors").hidden = surface !== "All" || words.length > 0;
  document.querySelector(".nothing").hidden = found > 0;
}

// Opens what the address names.
function follow() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named) return;
  for (const before of document.querySelectorAll(".named")) before.classList.remove("named");
  named.classList.add("named");
  if (named.matches(".operation")) named.open = true;
  named.scrollIntoView();
}

fetch("openapi.json").then((answer) => answer.json()).then((found) => {
  description = found;
  draw();
}).catch((error) => {
  document.getElementById("state").textContent = `The description could not be read: ${error.message}`;
});
