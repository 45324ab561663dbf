// Bundles the page's script and style into static/dist, where collectstatic finds them.
import { build } from "esbuild";

await build({
  entryPoints: ["frontend/board.js", "frontend/board.css"],
  outdir: "static/dist",
  bundle: true,
  minify: true,
  sourcemap: true,
  logLevel: "info",
});
