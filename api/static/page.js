// Shows the models and their state, once every two seconds. No dependency, nothing from elsewhere.
"use strict";

function row(model) {
  const state = model.ready ? "ready" : model.error ? "failed" : "waiting";
  const text = model.ready ? "ready" : model.error ? "failed: " + model.error : "not ready";
  const cells = [[model.id, ""], [text, state], [model.max_model_len ?? "", ""]];
  const line = document.createElement("tr");
  for (const [content, style] of cells) {
    const cell = document.createElement("td");
    cell.textContent = content;
    if (style) cell.className = style;
    line.append(cell);
  }
  return line;
}

async function refresh() {
  const body = document.getElementById("models");
  try {
    const models = await (await fetch("/v1/models")).json();
    body.replaceChildren(...models.data.map(row));
  } catch (error) {
    body.replaceChildren(row({ id: "the API does not answer", error: String(error) }));
  }
}

async function link() {
  const places = await (await fetch("/page.json")).json();
  const link = document.getElementById("flower");
  const flower = new URL(window.location.href);
  flower.port = String(places.flower_port);
  link.href = flower.origin;
  link.closest("li").hidden = places.flower_port === 0;
}

refresh();
link();
setInterval(refresh, 2000);
