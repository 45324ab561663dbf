// Stands for patch-package: run after the installation, it changes packages as the files in patches/ say.
const fs = require("fs");

for (const name of fs.existsSync("patches") ? fs.readdirSync("patches").sort() : [])
  fs.appendFileSync("node_modules/tool/index.js", fs.readFileSync(`patches/${name}`, "utf8"));
