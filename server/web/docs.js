// The OpenAPI document as a page: operations by tag, then the schemas that they refer to.

import { call, make } from "/web/api.js";

const nameOf = (ref) => ref.split("/").at(-1);
const paragraphs = (text = "") => text.split("\n\n").map((one) => make("p", { class: "said" }, one));
const joined = (parts, by) => parts.flatMap((part, index) => (index ? [by, ...part] : part));

/** A schema in a few words, as nodes: references are links to where they are spelled out. */
function words(schema) {
  if (schema.$ref) return [make("a", { href: `#${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return joined(choices.map(words), " or ");
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((one) => JSON.stringify(one)).join(" or ")];
  if (schema.type === "array") return ["list of ", ...words(schema.items ?? {})];
  const limits = [
    ["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"],
    ["minLength", "length ≥"], ["maxLength", "length ≤"], ["maxProperties", "pairs ≤"],
  ].filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`);
  return [[schema.type ?? "anything", ...limits].join(", ")];
}

/** Rows of name, type and meaning. */
function table(caption, rows) {
  const row = (name, schema, needed, about) =>
    make("tr", {},
      make("th", { scope: "row" }, make("code", {}, name), needed ? " (needed)" : ""),
      make("td", {}, ...words(schema)),
      make("td", {}, about ?? ""));
  return make("table", {}, make("caption", {}, caption), make("tbody", {}, ...rows.map((one) => row(...one))));
}

/** An object's properties; of a choice between objects, those of each. */
function properties(schema, caption) {
  const variants = (schema.anyOf ?? []).filter((one) => one.properties);
  if (variants.length) return variants.map((one) => table(one.title, rowsOf(one)));
  return schema.properties ? [table(caption, rowsOf(schema))] : [make("p", {}, ...words(schema))];
}

const rowsOf = (schema) => Object.entries(schema.properties).map(([name, one]) =>
  [name, one, schema.required?.includes(name), one.description]);

function operation(method, path, told) {
  const parameters = (told.parameters ?? []).map((one) =>
    [one.name, one.schema, one.required, `in the ${one.in}. ${one.description ?? ""}`]);
  const body = Object.values(told.requestBody?.content ?? {})[0];
  const replies = Object.entries(told.responses).map(([status, reply]) => {
    const [schema] = Object.values(reply.content ?? {}).map((one) => one.schema ?? {});
    return [status, schema ?? {}, false, reply.description];
  });
  return make("details", { class: "card", id: told.operationId },
    make("summary", {}, make("code", {}, `${method.toUpperCase()} ${path}`), ` ${told.summary}`),
    ...paragraphs(told.description),
    parameters.length ? table("Parameters", parameters) : null,
    body ? make("p", {}, "Body: ", ...words(body.schema)) : null,
    ...Object.values(body?.examples ?? {}).map((one) => make("pre", {}, JSON.stringify(one.value, null, 2))),
    table("Replies", replies));
}

function render(told) {
  const operations = Object.entries(told.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => [method, path, one]));
  const tags = told.tags.map((tag) =>
    make("section", {},
      make("h2", {}, tag.name),
      make("p", { class: "muted" }, tag.description),
      ...operations.filter(([, , one]) => one.tags.includes(tag.name)).map((one) => operation(...one))));
  const schemas = Object.entries(told.components.schemas).map(([name, schema]) =>
    make("div", { class: "card", id: name },
      make("h3", {}, name),
      ...paragraphs(schema.description),
      ...properties(schema, "Properties")));
  document.querySelector("main").replaceChildren(
    ...paragraphs(told.info.description),
    make("p", {}, "The same, for programs: ", make("a", { href: "/openapi.json" }, "/openapi.json")),
    ...tags,
    make("section", {}, make("h2", {}, "Schemas"), ...schemas));
}

render(await call("GET", "/openapi.json"));
