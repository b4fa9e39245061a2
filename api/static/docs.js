// Shows /openapi.json route by route. No dependency, nothing from elsewhere.
"use strict";

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function resolve(schema, root) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.slice(2).split("/").reduce((at, part) => at[part], root);
}

function typeOf(schema, root) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(one, root)).filter((t) => t !== "null").join(" | ");
  if (schema.type === "array") return typeOf(schema.items ?? {}, root) + "[]";
  return schema.type ?? "any";
}

function limits(schema) {
  const parts = [schema, ...(schema.anyOf ?? [])];
  const low = parts.map((part) => part.minimum ?? part.exclusiveMinimum).find((value) => value !== undefined);
  const high = parts.map((part) => part.maximum ?? part.exclusiveMaximum).find((value) => value !== undefined);
  if (high === undefined) return low === undefined ? "" : `at least ${low}`;
  return low === undefined ? `at most ${high}` : `${low} to ${high}`;
}

function fields(schema, root) {
  const table = element("table", "");
  const needed = new Set(schema.required ?? []);
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const about = [field.description, limits(field), needed.has(name) ? "required" : ""].filter(Boolean).join("; ");
    const cells = [element("td", "", element("code", name)), element("td", typeOf(field, root)), element("td", about)];
    table.append(element("tr", "", ...cells));
  }
  return table;
}

function route(path, method, about, root) {
  const block = element("details", "", element("summary", "", element("code", `${method.toUpperCase()} ${path}`)));
  block.append(element("p", about.description ?? about.summary));
  const given = about.parameters ?? [];
  if (given.length) block.append(element("p", "Parameters: " + given.map((one) => `${one.name} (${one.in})`).join(", ")));
  const body = about.requestBody?.content?.["application/json"]?.schema;
  const forms = body ? (body.anyOf ?? body.oneOf ?? [body]) : [];
  for (const form of forms) {
    if (forms.length > 1) block.append(element("h3", typeOf(form, root)));
    block.append(fields(resolve(form, root), root));
  }
  return block;
}

async function show() {
  const root = await (await fetch("/openapi.json")).json();
  const blocks = Object.entries(root.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, about]) => route(path, method, about, root)));
  document.getElementById("routes").replaceChildren(...blocks);
}

show();
