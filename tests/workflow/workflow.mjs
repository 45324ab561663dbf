// GitHub's own workflow parser and expression evaluator, one JSON request per line, one JSON answer per line:
//
//   {"parse": {"name", "text"}}                              -> {"errors": [...], "workflow": tree, "names": [...]}
//   {"evaluate": {"tree", "contexts", "success", "as"}}      -> {"value"} or {"error"}
//
// A tree is the workflow as plain JSON, with {"$expression": "..."} where an expression stands.
import { register } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

register("./json_modules.mjs", import.meta.url);
const packages = join(process.env.DEPLOY_MACHINE_NODE_MODULES, "@actions");
const load = path => import(pathToFileURL(join(packages, path)).href);
const { convertWorkflowTemplate, NoOperationTraceWriter, parseWorkflow, ...token } = await load("workflow-parser/dist/index.js");
const { data, Evaluator, Lexer, Parser } = await load("expressions/dist/index.js");
const { TokenType } = await load("expressions/dist/lexer.js");
const { reviver } = await load("expressions/dist/data/reviver.js");
const { replacer } = await load("expressions/dist/data/replacer.js");
const { truthy } = await load("expressions/dist/result.js");

const INSERT = "${{ insert }}"; // as a key: it merges another mapping into its own

function plain(node) {
  if (token.isMapping(node)) {
    const pairs = [];
    for (const { key, value } of node) pairs.push([key.isExpression ? INSERT : key.value, plain(value)]);
    return Object.fromEntries(pairs);
  }
  if (token.isSequence(node)) {
    const items = [];
    for (const item of node) items.push(plain(item));
    return items;
  }
  if (token.isBasicExpression(node)) return { $expression: node.expression };
  return node.value ?? null; // a null token has no value
}

async function parse({ name, text }) {
  const { context, value } = parseWorkflow({ name, content: text }, new NoOperationTraceWriter());
  const messages = () => context.errors.getErrors().map(error => error.message);
  if (!value || messages().length) return { errors: messages() };
  const template = await convertWorkflowTemplate(context, value);
  if (messages().length) return { errors: messages() };
  // The raw tokens, since the template leaves out a job's continue-on-error; conditions from the template,
  // since it adds `success() &&` to those that name no status function.
  const workflow = plain(value);
  for (const job of template.jobs) {
    const raw = workflow.jobs[job.id.value];
    raw.if = plain(job.if);
    (job.steps ?? []).forEach((step, index) => (raw.steps[index].if = plain(step.if)));
  }
  return { errors: [], workflow, names: [...new Set(names(workflow))] };
}

// The contexts and functions that the tree's expressions use; of `github` what of it.
function names(tree) {
  if (tree === INSERT) return ["insert"];
  if (tree === null || typeof tree !== "object") return [];
  if (!("$expression" in tree)) return Object.entries(tree).flatMap(([key, value]) => [...names(key), ...names(value)]);
  const tokens = lex(tree.$expression);
  const isName = (one, index) => one.type === TokenType.IDENTIFIER && tokens[index - 1]?.type !== TokenType.DOT;
  const whole = (one, index) => {
    let name = one.lexeme;
    while (one.lexeme === "github" && tokens[index + 1]?.type === TokenType.DOT) name += `.${tokens[(index += 2)].lexeme}`;
    return name;
  };
  return tokens.map((one, index) => (isName(one, index) ? whole(one, index) : "")).filter(Boolean);
}

function lex(expression) {
  const { tokens } = new Lexer(expression).lex();
  for (const one of tokens) {
    // In a string '' stands for a quote; this lexer (unlike the runner's) replaces only the first one.
    if (one.type === TokenType.STRING) one.value = one.lexeme.slice(1, -1).replaceAll("''", "'");
  }
  return tokens;
}

function evaluateOne(expression, contexts, success) {
  const functions = Object.entries({ success, always: true }).map(([name, value]) => ({
    name, minArgs: 0, maxArgs: 0, call: () => new data.BooleanData(value),
  })); // of the functions that are the runner's, cd.yml uses no other one
  const tree = new Parser(lex(expression), contexts.pairs().map(pair => pair.key), functions).parse();
  return new Evaluator(tree, contexts, new Map(functions.map(item => [item.name, item]))).evaluate();
}

function evaluate({ tree, contexts: json, success, as }) {
  const contexts = JSON.parse(JSON.stringify(json), reviver);
  const literal = value => JSON.parse(JSON.stringify(value), reviver);
  const leaf = value => {
    if (as === "condition") return truthy(value);
    if (as === "text") return value.coerceString();
    return JSON.parse(JSON.stringify(value, replacer));
  };
  const walk = node => {
    if (Array.isArray(node)) return node.map(walk);
    if (node === null || typeof node !== "object") return leaf(literal(node));
    if ("$expression" in node) return leaf(evaluateOne(node.$expression, contexts, success));
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, walk(value)]));
  };
  return { value: walk(tree) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let answer;
  try {
    answer = request.parse ? await parse(request.parse) : evaluate(request.evaluate);
  } catch (error) {
    answer = { error: String(error.message ?? error), errors: [String(error.message ?? error)] };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
