// Stands for a build that scans templates, as a program of Node.
const fs = require("fs");
const path = require("path");

function* pages(folder) {
  for (const entry of fs.readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const place = path.join(folder, entry.name);
    if (entry.isDirectory()) yield* pages(place);
    else if (entry.name.endsWith(".html")) yield place;
  }
}

const used = [...pages("scan-js")].flatMap((page) => fs.readFileSync(page, "utf8").match(/class="[a-z0-9-]+"/g) ?? []);
fs.mkdirSync("static/scanned-js", { recursive: true });
const css = fs.readFileSync("scan-js/base.css", "utf8") + [...new Set(used)].sort().join("\n") + "\n";
fs.writeFileSync("static/scanned-js/all.css", css);
