// Stands for Vite: bundles the style sheets of a folder with what its configuration in the root and a package say.
const fs = require("fs");
const path = require("path");

const sources = require("./package.json").sources;
const config = fs.existsSync("site.config.json") ? fs.readFileSync("site.config.json", "utf8") : "no configuration\n";
const tool = Object.keys(require("./package.json").devDependencies ?? {}).map((name) => require(name));
const css = fs.readdirSync(sources).sort().map((name) => fs.readFileSync(path.join(sources, name), "utf8"));
fs.mkdirSync("static/dist", { recursive: true });
fs.writeFileSync("static/dist/app.css", [config, ...tool, ...css].join(""));
