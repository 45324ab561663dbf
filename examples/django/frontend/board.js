import { h, render } from "preact";

// Shows how long ago each notice was written, and keeps that up to date.
function Age({ time }) {
  const minutes = Math.round((Date.now() - Date.parse(time)) / 60000);
  return h("span", { class: "age" }, minutes < 2 ? "just now" : `${minutes} minutes ago`);
}

function update() {
  for (const place of document.querySelectorAll("[data-time]")) {
    render(h(Age, { time: place.dataset.time }), place);
  }
}

update();
setInterval(update, 30000);
